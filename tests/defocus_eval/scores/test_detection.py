"""Boxes, masks and boundaries: pycocotools' own numbers, and LVIS' by a naive evaluation."""

import copy
from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from defocus_eval.errors import InputError
from defocus_eval.formats import read_truth
from defocus_eval.scores.detection import Detection
from defocus_eval.scores.metrics import MMDET_MOST, coco_metrics
from tests.defocus_eval.drawn import draw_detections, draw_instances, make_lvis, without, write

TASKS = ("bbox", "segm", "boundary")


def pycocotools(truth, entries, task, most=None):
    """pycocotools' evaluation. Boundaries: its own, with IoUs from boundaries eroded pixel by pixel."""
    annotated = COCO()
    annotated.dataset = copy.deepcopy(truth)
    annotated.createIndex()
    found = annotated.loadRes(copy.deepcopy(entries))
    evaluation = (BoundaryEvaluation if task == "boundary" else COCOeval)(
        annotated, found, "segm" if task == "boundary" else task
    )
    if most:
        evaluation.params.maxDets = list(most)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


class BoundaryEvaluation(COCOeval):
    """The smaller of the IoU of masks and of boundaries."""

    def computeIoU(self, image_id, category_id):
        ious = super().computeIoU(image_id, category_id)
        if not len(ious):
            return ious
        objects = self._gts[image_id, category_id]
        found = sorted(self._dts[image_id, category_id], key=lambda entry: -entry["score"])[: len(ious)]
        edges = [[erode(entry["segmentation"]) for entry in group] for group in (found, objects)]
        crowd = [int(entry["iscrowd"]) for entry in objects]
        return np.where(np.array(crowd, bool), ious, np.minimum(ious, coco_mask.iou(*edges, crowd)))


def erode(code):
    """The boundary: what is gone after as many erosions by a square of 3 as it is wide."""
    mask = coco_mask.decode(code).astype(bool)
    inside = np.pad(mask, 1)
    for _ in range(max(1, round(0.02 * (mask.shape[0] ** 2 + mask.shape[1] ** 2) ** 0.5))):
        shifted = [np.roll(inside, (row, column), (0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
        inside = np.logical_and.reduce(shifted)
    return coco_mask.encode(np.asfortranarray((mask & ~inside[1:-1, 1:-1]).astype(np.uint8)))


def drawn(tmp_path, seed=0, **settings):
    rng = np.random.default_rng(seed)
    truth = draw_instances(rng, **settings)
    return read_truth(write(tmp_path / "truth.json", truth)), truth, draw_detections(rng, truth)


def entries_of(found, task):
    return without(found, "segmentation" if task == "bbox" else "bbox")


@pytest.mark.parametrize("task", TASKS)
def test_the_official_numbers_are_those_of_pycocotools(task, tmp_path, capsys):
    truth, content, found = drawn(tmp_path)
    numbers = Detection(truth, entries_of(found, task), task).official()
    reference = pycocotools(content, entries_of(found, task), task)
    assert list(numbers) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    # Boundaries are summed in another order.
    tolerance = 1e-12 if task == "boundary" else 0
    assert list(numbers.values()) == pytest.approx(list(reference.stats), abs=tolerance)
    # No trivial set: numbers of their own.
    assert len({f"{value:.3f}" for value in numbers.values()}) > 7 and 0.03 < numbers["AP"] < 0.9


def test_more_than_100_detections_of_a_class(tmp_path):
    """COCO counts 100 of an image and class, mmdet's log up to 1,000."""
    rng = np.random.default_rng(2)
    content = draw_instances(rng, images=2, crowds=0)
    truth = read_truth(write(tmp_path / "truth.json", content))
    found = []
    for annotation in content["annotations"] * 60:
        x, y, width, height = annotation["bbox"]
        shift = rng.normal(0, 0.1, 2) * (width, height)
        box = [x + shift[0], y + shift[1], width, height]
        found.append({key: annotation[key] for key in ("image_id", "category_id")} | {"bbox": box})
        found[-1]["score"] = round(float(rng.random()), 2)
    counted = [(entry["image_id"], entry["category_id"]) for entry in found]
    assert max(counted.count(pair) for pair in set(counted)) > 100
    official = Detection(truth, found, "bbox").official()
    assert list(official.values()) == list(pycocotools(content, found, "bbox").stats)
    detection = Detection(truth, found, "bbox", most=1000)
    assert detection.official() == official
    logged = detection.own_scores(coco_metrics(MMDET_MOST))
    assert list(logged.values()) == pytest.approx(
        list(pycocotools(content, found, "bbox", MMDET_MOST).stats), abs=1e-12
    )
    assert logged["AR1000"] > official["AR100"]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_an_annotation_of_id_0_is_never_found_as_in_pycocotools(tmp_path, task):
    truth, content, found = drawn(tmp_path, 3)
    expected = Detection(truth, entries_of(found, task), task).official()
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    other = read_truth(write(tmp_path / "from_0.json", content))
    official = Detection(other, entries_of(found, task), task).official()
    assert official != expected
    stats = pycocotools(content, entries_of(found, task), task).stats
    assert list(official.values()) == pytest.approx(list(stats), abs=1e-12)


def test_polygons_are_filled_as_pycocotools_fills_them(tmp_path):
    _, content, found = drawn(tmp_path, 4)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        corners = [x + width / 2, y, x + width, y + height / 2, x + width / 3, y + height, x, y + height / 2.7]
        annotation["segmentation"] = [corners]
        if annotation["iscrowd"]:
            annotation["segmentation"] = {"size": [9, 9], "counts": []}
            size = next(image for image in content["images"] if image["id"] == annotation["image_id"])
            full = [0, size["height"] * size["width"]]
            annotation["segmentation"] = {"size": [size["height"], size["width"]], "counts": full}
    truth = read_truth(write(tmp_path / "polygons.json", content))
    for task in ("segm", "boundary"):
        numbers = Detection(truth, entries_of(found, task), task).official()
        assert 0 < numbers["AP"] < 1
    reference = pycocotools(content, entries_of(found, "segm"), "segm")
    assert list(Detection(truth, entries_of(found, "segm"), "segm").official().values()) == list(reference.stats)


def test_masks_without_true_masks_are_refused(tmp_path):
    _, content, found = drawn(tmp_path, 5)
    del content["annotations"][2]["segmentation"]
    truth = read_truth(write(tmp_path / "holes.json", content))
    with pytest.raises(InputError, match=r"holes.json, annotation 3 has no segmentation.*--tasks bbox"):
        Detection(truth, entries_of(found, "segm"), "segm")
    Detection(truth, entries_of(found, "bbox"), "bbox")


def naive_lvis(content, found, area_range, threshold, partly_counts=False):
    """AP of each class by LVIS' rule, step by step, boxes: `{class: AP or None}`."""
    averages = {}
    for category in content["categories"]:
        key = category["id"]
        entries, objects = [], 0
        for image in sorted(content["images"], key=lambda image: image["id"]):
            true = [a for a in content["annotations"] if (a["image_id"], a["category_id"]) == (image["id"], key)]
            if not true and key not in image["neg_category_ids"]:
                continue
            mine = [e for e in found if (e["image_id"], e["category_id"]) == (image["id"], key)]
            mine.sort(key=lambda entry: -entry["score"])
            inside = [area_range[0] <= a["area"] <= area_range[1] for a in true]
            objects += sum(inside)
            free = set(range(len(true)))
            for entry in mine:
                ious = {i: coco_mask.iou([entry["bbox"]], [true[i]["bbox"]], [0])[0, 0] for i in free}
                good = [i for i in free if ious[i] >= threshold]
                wanted = [i for i in good if inside[i]] or good
                if wanted:
                    best = max(wanted, key=lambda i: (ious[i], i))
                    free.remove(best)
                    if inside[best]:
                        entries.append((entry["score"], True))
                elif key not in image["not_exhaustive_category_ids"]:
                    area = entry["bbox"][2] * entry["bbox"][3]
                    if area_range[0] <= area <= area_range[1]:
                        entries.append((entry["score"], False))
        averages[key] = None if not objects else naive_average(entries, objects)
    return averages


def naive_average(entries, objects):
    """Precision at 101 recalls, each the best there is from that recall on."""
    entries = sorted(entries, key=lambda entry: -entry[0])
    points, hits = [], 0
    for number, (_, hit) in enumerate(entries, 1):
        hits += hit
        points.append((hits / objects, hits / number))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((precision for reached, precision in points if reached >= recall), default=0)
    return total / 101


def test_lvis_numbers_follow_its_rules(tmp_path):
    rng = np.random.default_rng(6)
    content = make_lvis(rng, draw_instances(rng, images=16))
    found = entries_of(draw_detections(rng, content, digits=6), "bbox")
    truth = read_truth(write(tmp_path / "lvis.json", content))
    assert truth.kind == "lvis"
    numbers = Detection(truth, found, "bbox").official()
    by_threshold = [naive_lvis(content, found, (0, 1e10), threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    classes = defaultdict(list)
    for averages in by_threshold:
        for key, value in averages.items():
            classes[key].append(value)
    for key, frequency in zip(classes, "rcf"):
        assert numbers[f"AP{frequency}"] == pytest.approx(np.mean(classes[key]), abs=1e-9)
    assert numbers["AP"] == pytest.approx(np.mean(list(classes.values())), abs=1e-9)
    assert numbers["AP50"] == pytest.approx(np.mean([values[0] for values in classes.values()]), abs=1e-9)
    small = [naive_lvis(content, found, (0, 1024), threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    values = [value for averages in small for value in averages.values() if value is not None]
    assert numbers["APs"] == pytest.approx(np.mean(values), abs=1e-9)
    # What was not looked for, or not everywhere, makes a difference here.
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], []
    plain = read_truth(write(tmp_path / "plain.json", content))
    assert Detection(plain, found, "bbox").official()["AP"] != numbers["AP"]


def test_lvis_counts_300_of_an_image_and_ap_fixed_10000_of_a_class(tmp_path):
    rng = np.random.default_rng(7)
    content = make_lvis(rng, draw_instances(rng, images=6))
    truth = read_truth(write(tmp_path / "lvis.json", content))
    found = entries_of(draw_detections(rng, content, digits=6), "bbox")
    crowded = content["annotations"][0]["image_id"]
    # Confident nonsense of one class pushes an image's other detections out.
    nonsense = [
        {"image_id": crowded, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 2 + number / 1000}
        for number in range(300)
    ]
    alone = [entry for entry in found if entry["image_id"] != crowded]
    full, cut = Detection(truth, found + nonsense, "bbox"), Detection(truth, alone + nonsense, "bbox")
    assert full.official() == cut.official()
    fixed = Detection(truth, found + nonsense, "bbox", most_of_class=10_000)
    without_limit = Detection(truth, found + nonsense, "bbox", most=10**6)
    assert fixed.official() == without_limit.official() != full.official()
    # The best of a class, whatever their images.
    fewest = Detection(truth, found, "bbox", most_of_class=5)
    for key in (2, 5, 9):
        best = sorted((e["score"] for e in found if e["category_id"] == key), reverse=True)[:5]
        taken = [found[row]["score"] for row in fewest.source if found[row]["category_id"] == key]
        assert set(taken) <= set(best)


def test_images_by_themselves_are_sets_of_one_image(tmp_path):
    truth, content, found = drawn(tmp_path, 8)
    found = entries_of(found, "bbox")
    of_images = Detection(truth, found, "bbox").of_images
    for image in content["images"]:
        alone = {
            **content,
            "images": [image],
            "annotations": [a for a in content["annotations"] if a["image_id"] == image["id"]],
        }
        value = pycocotools(alone, [e for e in found if e["image_id"] == image["id"]], "bbox").stats[0]
        if value < 0:
            assert image["id"] not in of_images
        else:
            assert of_images[image["id"]] == pytest.approx(value, abs=1e-12)
    assert len(of_images) > 5
