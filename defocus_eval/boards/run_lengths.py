"""Whether a compressed run-length code is one; pycocotools decodes a broken one into whatever lies in memory.

The format is that of pycocotools' `maskApi.c`: six bits a character above "0", five of a number and one that says that
it goes on, the lowest first; from the third on, each count is the difference to the one before the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Codes that are looked at together; alone, each costs ten times as much.
BATCH = 200
# Characters of a number, more than any has.
_LONGEST = 10


def first_fault(codes: Sequence[str | bytes], pixels: Sequence[int]) -> tuple[int, str] | None:
    """The place of the first broken code and what is wrong with it, in words; None if all are whole.

    Args:
        codes: The `counts` of masks.
        pixels: Number of pixels of each mask.
    """
    for start in range(0, len(codes), BATCH):
        if _fault_among(codes[start : start + BATCH], pixels[start : start + BATCH]) is None:
            continue
        for index in range(start, min(start + BATCH, len(codes))):
            fault = _fault_among(codes[index : index + 1], pixels[index : index + 1])
            if fault is not None:
                return index, fault
    return None


def _fault_among(codes: Sequence[str | bytes], pixels: Sequence[int]) -> str | None:
    """What is wrong with any of the codes; which one it is, is not told."""
    try:
        texts = [code.encode("ascii") if isinstance(code, str) else code for code in codes]
    except UnicodeEncodeError:
        return "its counts hold letters that no code has"
    lengths = np.array([len(text) for text in texts])
    if not lengths.all():
        return "its counts are empty"
    letters = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    if letters.min() < 0 or letters.max() > 63:
        return "its counts hold letters that no code has"
    ends = (letters & 32) == 0
    if not ends[np.cumsum(lengths) - 1].all():
        return "its counts break off"
    last = np.flatnonzero(ends)
    first = np.concatenate(([0], last[:-1] + 1))
    places = np.arange(letters.size) - np.repeat(first, last - first + 1)
    if places.max() >= _LONGEST:
        return "one of its counts is too long"
    numbers = np.add.reduceat((letters & 31) << (5 * places), first)
    negative = (letters[last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * (places[last][negative] + 1))

    # Where the numbers of each code start, and how many there are.
    starts = np.searchsorted(last, np.cumsum(lengths) - lengths)
    amounts = np.diff(np.append(starts, numbers.size))
    runs = _undo_differences(numbers, starts, amounts)
    if runs.min() < 0:
        return "one of its counts is negative"
    sums = np.add.reduceat(runs, starts)
    wrong = np.flatnonzero(sums != np.asarray(pixels))
    if wrong.size:
        return f"its counts add up to {sums[wrong[0]]:,} pixels, its size says {pixels[wrong[0]]:,}"
    return None


def _undo_differences(numbers: np.ndarray, starts: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Every second number of a code adds up; its first stands alone."""
    place = np.arange(numbers.size) - np.repeat(starts, amounts)
    runs = np.where(place == 0, numbers, 0)
    for parity in (0, 1):
        own = (place % 2 == parity) & (place > 0)
        sums = np.cumsum(np.where(own, numbers, 0))
        before = np.concatenate(([0], sums))[starts]
        runs = np.where(own, sums - np.repeat(before, amounts), runs)
    return runs
