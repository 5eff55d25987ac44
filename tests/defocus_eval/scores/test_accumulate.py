"""Weights of images: a resampled set scores what pycocotools says of a set with its images written out."""

import copy

import numpy as np
import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.formats import read_truth
from defocus_eval.scores.bootstrap import draw_weights
from defocus_eval.scores.detection import Detection
from tests.defocus_eval.drawn import draw_detections, draw_instances, without, write
from tests.defocus_eval.scores.test_detection import pycocotools


def written_out(content, entries, weights):
    """The set with each image as often as its weight says, under ids of their own, in the same order."""
    images, annotations, found = [], [], []
    for weight, image in zip(weights, sorted(content["images"], key=lambda image: image["id"])):
        for copy_number in range(weight):
            image_id = image["id"] * 100 + copy_number
            images.append({**image, "id": image_id})
            annotations += [{**a, "image_id": image_id} for a in content["annotations"] if a["image_id"] == image["id"]]
            found += [{**e, "image_id": image_id} for e in entries if e["image_id"] == image["id"]]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
    return {**content, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("ties", [False, True])
def test_resampled_sets_score_as_if_written_out(ties, tmp_path):
    rng = np.random.default_rng(11)
    content = draw_instances(rng, images=10)
    entries = without(draw_detections(rng, content, digits=8), "segmentation")
    if ties:
        # Of different images: those of one image would stand in another order among its copies.
        for image in content["images"]:
            for rank, entry in enumerate(entry for entry in entries if entry["image_id"] == image["id"]):
                entry["score"] = rank / 50
    truth = read_truth(write(tmp_path / "truth.json", content))
    detection = Detection(truth, entries, "bbox")
    weights = draw_weights(10, 4, 0)
    assert weights.max() > 1 and weights.min() == 0
    scores = detection.scores(weights)
    for sample, row in enumerate(weights):
        expected = pycocotools(*written_out(content, copy.deepcopy(entries), row), "bbox").stats
        values = [scores[name][sample] for name in detection.metrics]
        assert [-1 if np.isnan(value) else value for value in values] == pytest.approx(list(expected), abs=1e-12)


def test_a_class_that_no_drawn_image_has_does_not_count(tmp_path):
    rng = np.random.default_rng(13)
    content = draw_instances(rng, images=4, crowds=0)
    ids = sorted(image["id"] for image in content["images"])
    entries = without(draw_detections(rng, content), "segmentation")
    for record in content["annotations"]:
        record["category_id"] = 2 if record["image_id"] == ids[0] else 5
    assert {record["category_id"] for record in content["annotations"]} == {2, 5}
    truth = read_truth(write(tmp_path / "truth.json", content))
    weights = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    scores = Detection(truth, entries, "bbox").scores(weights)
    for sample in (0, 1):
        expected = pycocotools(*written_out(content, entries, weights[sample]), "bbox").stats[0]
        assert scores["AP"][sample] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(scores["AP"][2])
