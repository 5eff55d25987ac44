"""Panoptic quality: hotcoco's, which is held to panopticapi's, and small sets counted by hand."""

import copy
import json

import numpy as np
import pytest

hotcoco = pytest.importorskip("hotcoco.panoptic", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_predictions, read_truth
from defocus_eval.scores.bootstrap import draw_weights
from defocus_eval.scores.panoptic import Panoptic
from tests.defocus_eval.drawn import blocks, save, write

# Two things and two kinds of stuff.
CATEGORIES = [
    {"id": key, "name": name, "isthing": isthing}
    for key, name, isthing in ((3, "cat", 1), (8, "dog", 1), (120, "sky", 0), (121, "sea", 0))
]


def colours(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def write_set(folder, name, maps, categories_of, extra):
    """A JSON and its PNGs from maps of ids, 0 for void."""
    annotations = []
    for number, ids in enumerate(maps):
        save(folder / name / f"{number}.png", colours(ids))
        segments = [
            {"id": int(key), "category_id": int(categories_of(number, key)), "area": int((ids == key).sum()), **extra}
            for key in np.unique(ids)
            if key
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(maps))]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return write(folder / f"{name}.json", content)


@pytest.fixture
def drawn(tmp_path):
    """Eight images with void, crowds, wrong classes and ids beyond 16 bits."""
    rng = np.random.default_rng(0)
    truths = [blocks(rng, [0, 70_000, 300, 5, 9], 40, 50, 25) for _ in range(8)]
    found = [np.where(rng.random((40, 50)) < 0.93, np.roll(ids, rng.integers(-2, 3, 2), (0, 1)), 0) for ids in truths]
    keys = [entry["id"] for entry in CATEGORIES]
    rule = {70_000: 120, 300: 3, 5: 8, 9: 121}
    truth = write_set(tmp_path, "truth", truths, lambda _, key: rule[key], {"iscrowd": 0, "bbox": [0, 0, 1, 1]})
    content = json.loads(truth.read_text())
    for annotation in content["annotations"][::2]:
        annotation["segments_info"][1]["iscrowd"] = 1
    write(truth, content)
    predictions = write_set(
        tmp_path, "found", found, lambda _, key: rule[key] if rng.random() < 0.75 else rng.choice(keys), {}
    )
    return truth, predictions


def panoptic(truth, predictions):
    truth = read_truth(truth)
    return Panoptic(truth, read_predictions(predictions, truth))


def test_the_numbers_are_those_of_the_library(drawn):
    scorer = panoptic(*drawn)
    numbers = scorer.official()
    reference = hotcoco.pq_compute(*map(str, drawn))
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("PQ", "SQ", "RQ"):
            assert numbers[name + suffix] == pytest.approx(reference[group][name.lower()], abs=1e-12)
    assert 0.2 < numbers["PQ"] < 0.9 and numbers["PQ_th"] != numbers["PQ_st"]
    classes = scorer.details(None, 0.95)["per_class"]
    for category in CATEGORIES:
        expected = reference["per_class"][category["id"]]
        assert classes[category["name"]]["PQ"] == pytest.approx(expected["pq"], abs=1e-12)


def test_weights_are_sets_written_out(drawn, tmp_path):
    truth, predictions = drawn
    weights = draw_weights(8, 3, 0)
    scores = panoptic(truth, predictions).scores(weights)
    for sample, row in enumerate(weights):
        files = []
        for name, path in (("more_truth", truth), ("more_found", predictions)):
            content = json.loads(path.read_text())
            annotations = []
            for annotation, weight in zip(content["annotations"], row):
                annotations += [copy.deepcopy(annotation) for _ in range(weight)]
            for number, annotation in enumerate(annotations):
                annotation["image_id"] = number
            images = [{"id": number} for number in range(len(annotations))]
            files.append(
                str(write(tmp_path / f"{name}.json", {**content, "annotations": annotations, "images": images}))
            )
        reference = hotcoco.pq_compute(*files, str(truth.with_suffix("")), str(predictions.with_suffix("")))
        assert scores["PQ"][sample] == pytest.approx(reference["All"]["pq"], abs=1e-12)


def test_an_image_by_itself(drawn):
    truth, predictions = drawn
    scorer = panoptic(truth, predictions)
    weights = np.eye(8)
    expected = scorer.scores(weights)["PQ"]
    assert list(scorer.of_images.values()) == pytest.approx(expected)


def by_hand(tmp_path, truth, found, crowd=()):
    """One image of one class, "cat": maps of ids."""
    truth_file = write_set(tmp_path, "t", [truth], lambda *_: 3, {"iscrowd": 0})
    content = json.loads(truth_file.read_text())
    for segment in content["annotations"][0]["segments_info"]:
        segment["iscrowd"] = int(segment["id"] in crowd)
    write(truth_file, content)
    scorer = panoptic(truth_file, write_set(tmp_path, "p", [found], lambda *_: 3, {}))
    return scorer.official(), scorer.details(None, 0.95)["per_class"]["cat"]


def strip(*lengths):
    """A map one pixel high: runs of ids 1, 2, … or as given, `(length, id)`."""
    return np.concatenate([np.full(length, key) for length, key in lengths])[None]


def test_a_segment_found_by_more_than_half(tmp_path):
    numbers, cat = by_hand(tmp_path, strip((8, 1), (2, 0)), strip((6, 7), (4, 0)))
    assert numbers["PQ"] == numbers["SQ"] == pytest.approx(6 / 8) and numbers["RQ"] == 1
    assert (cat["found"], cat["false"], cat["missed"]) == (1, 0, 0)


def test_half_is_not_found(tmp_path):
    numbers, cat = by_hand(tmp_path, strip((8, 1)), strip((4, 7), (4, 0)))
    assert numbers["PQ"] == 0 and (cat["found"], cat["false"], cat["missed"]) == (0, 1, 1)


def test_void_counts_neither_in_the_union_nor_as_false(tmp_path):
    # Segment 7 covers 5 of 6 pixels of the object, and 3 of void; segment 8 lies on void alone.
    numbers, cat = by_hand(tmp_path, strip((6, 1), (6, 0)), strip((1, 0), (5, 7), (3, 7), (3, 8)))
    assert numbers["SQ"] == pytest.approx(5 / 6)
    assert (cat["found"], cat["false"], cat["missed"]) == (1, 0, 0)


def test_what_lies_on_a_crowd_is_not_false(tmp_path):
    numbers, cat = by_hand(tmp_path, strip((6, 1), (6, 2)), strip((6, 7), (3, 8), (3, 0)), crowd={2})
    assert numbers["PQ"] == 1 and (cat["found"], cat["false"], cat["missed"]) == (1, 0, 0)


def test_absent_groups_have_no_number(tmp_path):
    numbers, _ = by_hand(tmp_path, strip((6, 1)), strip((6, 7)))
    assert set(numbers) == {"PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["segments_info"].pop(), r"segment 70000 of the PNG is not in segments_info; list it"),
        (lambda a: a["segments_info"][0].update(id=77), r"is not in segments_info"),
        (lambda a: a["segments_info"].append({"id": 4, "category_id": 3}), r"segment 4 of segments_info has no pixel"),
    ],
)
def test_json_and_png_must_agree(drawn, change, message):
    truth, predictions = drawn
    content = json.loads(predictions.read_text())
    change(content["annotations"][0])
    write(predictions, content)
    with pytest.raises(InputError, match=message):
        panoptic(truth, predictions)


def test_pictures_of_another_size_are_refused(drawn):
    truth, predictions = drawn
    save(predictions.with_suffix("") / "3.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"3.png is 9×9, its ground truth 50×40"):
        panoptic(truth, predictions)
