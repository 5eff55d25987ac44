"""Codes of masks against pycocotools, and broken ones, which it decodes into whatever lies in memory."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from defocus_eval.boards import run_lengths
from defocus_eval.boards.run_lengths import first_fault


def fault_of(counts, pixels):
    found = first_fault([counts], [pixels])
    return found and found[1]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (333, 500)])
def test_whole_codes_have_no_fault(size, density):
    mask = (np.random.default_rng(0).random(size) < density).astype(np.uint8)
    code = coco_mask.encode(np.asfortranarray(mask))
    pixels = size[0] * size[1]
    assert fault_of(code["counts"], pixels) is None and fault_of(code["counts"].decode(), pixels) is None
    # Runs of more than 16 bits, and differences to them.
    runs = [0, 3 * 10**6, 5, 7, 10**6, 1]
    long = coco_mask.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)
    assert fault_of(long["counts"], sum(runs)) is None


def test_a_code_of_another_size_tells_its_own():
    code = coco_mask.encode(np.ones((6, 8), np.uint8, order="F"))["counts"]
    assert fault_of(code, 48) is None
    assert fault_of(code, 49) == "its counts add up to 48 pixels, its size says 49"


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ("", "empty"),
        ("Q", "break off"),
        ("0 0", "letters"),
        ("é", "letters"),
        ("O", "negative"),
        ("o" * 30 + "0", "long"),
    ],
)
def test_broken_codes_are_told_apart(counts, fault):
    assert fault in fault_of(counts, 20)


def naive_runs(counts):
    """Runs of a code, one letter at a time; None where it breaks off."""
    runs, place = [], 0
    while place < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if place == len(counts):
                return None
            letter = ord(counts[place]) - 48
            value, more = value | (letter & 31) << shift, bool(letter & 32)
            place, shift = place + 1, shift + 5
        if letter & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def test_a_code_is_whole_exactly_if_its_runs_fill_the_mask():
    mask = np.zeros((12, 9), np.uint8, order="F")
    mask[3:9, 2:7] = 1
    counts = coco_mask.encode(mask)["counts"].decode()
    whole = 0
    for place in range(len(counts)):
        for letter in map(chr, range(48, 112)):
            changed = counts[:place] + letter + counts[place + 1 :]
            runs = naive_runs(changed)
            right = runs is not None and min(runs) >= 0 and sum(runs) == mask.size
            assert (fault_of(changed, mask.size) is None) == right, changed
            whole += right
    # At least the code itself, each time that a letter stays what it was.
    assert whole >= len(counts)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_the_first_of_many_is_found(batch, monkeypatch):
    monkeypatch.setattr(run_lengths, "BATCH", batch)
    rng = np.random.default_rng(0)
    masks = [np.asfortranarray(rng.random((9, 7)) < rng.random(), np.uint8) for _ in range(30)]
    codes = [coco_mask.encode(mask)["counts"].decode() for mask in masks]
    pixels = [63] * 30
    assert first_fault(codes, pixels) is None and first_fault([], []) is None
    codes[17], codes[23] = codes[17] + "0", ""
    # A run of no pixels at the end changes nothing; two numbers fewer do.
    codes[17] = codes[17][:-3]
    assert first_fault(codes, pixels)[0] == 17
    for index, broken in ((29, "~~"), (5, "Q"), (0, "")):
        codes[index] = broken
        assert first_fault(codes, pixels)[0] == min(index, 17)
