"""IoU of classes: loops over pixels, and what Cityscapes adds, by its definition."""

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_predictions, read_truth
from defocus_eval.formats.cityscapes import LABELS
from defocus_eval.scores.bootstrap import draw_weights
from defocus_eval.scores.semantic import OBJECT_PIXELS, Semantic
from tests.defocus_eval.drawn import blocks, save

SCORED = [label for label in LABELS if label.counts]


def semantic(folder, classes=None):
    truth = read_truth(folder / "truth", classes=classes)
    return Semantic(truth, read_predictions(folder / "found", truth))


def draw(folder, names, values, suffix="", images=5, seed=0):
    """Truth and predictions, written; returns the maps."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(images):
        true = blocks(rng, values)
        found = np.where(rng.random(true.shape) < 0.7, true, blocks(rng, values))
        save(folder / "truth" / f"{names.format(number)}{suffix}.png", true.astype(np.uint8))
        save(folder / "found" / f"{names.format(number)}.png", found.astype(np.uint8))
        pairs.append((true, found))
    return pairs


def naive_iou(pairs, ignored, labels):
    """IoU of each label, None where it is neither there nor found."""
    values = {}
    for label in labels:
        both = sum(((true == label) & (found == label)).sum() for true, found in pairs)
        either = sum((((true == label) | (found == label)) & ~np.isin(true, ignored)).sum() for true, found in pairs)
        values[label] = both / either if either else None
    return values


def mean(values):
    return np.mean([value for value in values if value is not None])


def test_iou_of_plain_maps(tmp_path):
    pairs = draw(tmp_path, "image_{}", [0, 1, 2, 3, 255])
    numbers = semantic(tmp_path).official()
    iou = naive_iou(pairs, [255], range(4))
    assert numbers["mIoU"] == pytest.approx(mean(iou.values()), abs=1e-12)
    true, found = (np.concatenate([pair[index].ravel() for pair in pairs]) for index in (0, 1))
    counting = true != 255
    assert numbers["aAcc"] == pytest.approx((true == found)[counting].mean(), abs=1e-12)
    accuracies = [(found == label)[true == label].mean() for label in range(4)]
    assert numbers["mAcc"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    shares = [(true == label).sum() / counting.sum() for label in range(4)]
    assert numbers["fwIoU"] == pytest.approx(np.dot(shares, [iou[label] for label in range(4)]), abs=1e-12)
    assert set(numbers) == {"mIoU", "aAcc", "mAcc", "fwIoU"}


def test_a_class_that_is_found_but_not_there_is_0(tmp_path):
    save(tmp_path / "truth" / "a.png", np.zeros((4, 4), np.uint8))
    found = np.zeros((4, 4), np.uint8)
    found[0, 0] = 1
    save(tmp_path / "found" / "a.png", found)
    scorer = semantic(tmp_path, ["wall", "tile", "moss"])
    assert scorer.official()["mIoU"] == pytest.approx((15 / 16 + 0) / 2)
    classes = scorer.details(None, 0.95)["per_class"]
    assert classes["tile"] == {"IoU": 0.0, "accuracy": None, "pixels": 0}
    assert classes["moss"]["IoU"] is None


def test_weights_are_sets_written_out(tmp_path):
    pairs = draw(tmp_path, "image_{}", [0, 1, 2, 255])
    weights = draw_weights(5, 3, 0)
    scores = semantic(tmp_path).scores(weights)
    for sample, row in enumerate(weights):
        written = [pair for pair, weight in zip(pairs, row) for _ in range(weight)]
        assert scores["mIoU"][sample] == pytest.approx(mean(naive_iou(written, [255], range(3)).values()), abs=1e-12)


def test_images_by_themselves(tmp_path):
    pairs = draw(tmp_path, "image_{}", [0, 1, 2, 255])
    expected = [mean(naive_iou([pair], [255], range(3)).values()) for pair in pairs]
    assert list(semantic(tmp_path).of_images.values()) == pytest.approx(expected, abs=1e-12)


def test_which_class_is_taken_for_which(tmp_path):
    pairs = draw(tmp_path, "image_{}", [0, 1, 2, 255])
    confusion = semantic(tmp_path, ["wall", "tile", "moss"]).details(None, 0.95)["confusion"]
    assert confusion["labels"] == ["wall", "tile", "moss", "none"]
    for row in range(3):
        for column, label in enumerate((0, 1, 2, 255)):
            pixels = sum(((true == row) & (found == label)).sum() for true, found in pairs)
            assert confusion["matrix"][row][column] == pixels


def test_ade20k_has_no_class_0(tmp_path):
    pairs = draw(tmp_path, "ADE_val_0000000{}", [0, 1, 2, 150])
    scorer = semantic(tmp_path)
    numbers = scorer.official()
    assert not scorer.notes
    assert numbers["mIoU"] == pytest.approx(mean(naive_iou(pairs, [0], range(1, 151)).values()), abs=1e-12)
    assert numbers["score"] == pytest.approx((numbers["mIoU"] + numbers["aAcc"]) / 2, abs=1e-12)


def draw_cityscapes(folder):
    """All 34 labels, objects among them, some of them groups; returns maps of labels and of objects."""
    pairs = draw(folder, "aachen_00000{}_000019", list(range(34)), "_gtFine_labelIds")
    rng = np.random.default_rng(1)
    objects = []
    for number, (true, _) in enumerate(pairs):
        ids = true.astype(np.int32)
        for label in range(24, 34):
            mine = true == label
            split = rng.random(true.shape) < 0.5
            ids[mine & split] = label * 1000
            if rng.random() < 0.7:
                ids[mine & ~split] = label * 1000 + 1
        save(folder / "truth" / f"aachen_00000{number}_000019_gtFine_instanceIds.png", ids.astype(np.uint16))
        objects.append(ids)
    return pairs, objects


def test_cityscapes_scores_19_classes_and_7_categories(tmp_path):
    pairs, _ = draw_cityscapes(tmp_path)
    scorer = semantic(tmp_path)
    ignored = [label.id for label in LABELS if not label.counts]
    iou = naive_iou(pairs, ignored, [label.id for label in SCORED])
    assert len(iou) == 19
    numbers = scorer.official()
    assert numbers["mIoU"] == pytest.approx(mean(iou.values()), abs=1e-12)
    categories = {}
    for name in dict.fromkeys(label.category for label in SCORED):
        members = [label.id for label in SCORED if label.category == name]
        as_one = [(np.where(np.isin(t, members), 99, t), np.where(np.isin(f, members), 99, f)) for t, f in pairs]
        categories[name] = naive_iou(as_one, ignored, [99])[99]
    assert len(categories) == 7
    assert numbers["category_mIoU"] == pytest.approx(mean(categories.values()), abs=1e-12)
    assert scorer.details(None, 0.95)["per_category"] == pytest.approx(categories, abs=1e-12)


def test_small_objects_weigh_as_much_as_large_ones(tmp_path):
    """iIoU: pixels of an object count as if all objects of the class were of the same size."""
    pairs, objects = draw_cityscapes(tmp_path)
    classes, categories = [], {"human": [0.0, 0.0, 0], "vehicle": [0.0, 0.0, 0]}
    scored = [label.id for label in SCORED]
    for label in SCORED:
        if not label.has_instances:
            continue
        hit, missed, false = 0.0, 0.0, 0
        members = [other.id for other in LABELS if other.has_instances and other.category == label.category]
        for (true, found), ids in zip(pairs, objects):
            false += ((found == label.id) & np.isin(true, scored) & (true != label.id)).sum()
            # An id of exactly 1000 · label is no object: cityscapesScripts takes those above 1000.
            for key in np.unique(ids[(ids > 1000) & (ids // 1000 == label.id)]):
                mine = ids == key
                weight = OBJECT_PIXELS[label.name] / mine.sum()
                hit += weight * (mine & (found == label.id)).sum()
                missed += weight * (mine & (found != label.id)).sum()
                categories[label.category][0] += weight * (mine & np.isin(found, members)).sum()
                categories[label.category][1] += weight * (mine & ~np.isin(found, members)).sum()
        classes.append(hit / (hit + missed + false))
    for name, sums in categories.items():
        members = [label.id for label in LABELS if label.category == name]
        outside = [label.id for label in SCORED if label.category != name]
        sums[2] = sum((np.isin(found, members) & np.isin(true, outside)).sum() for true, found in pairs)
    numbers = semantic(tmp_path).official()
    assert numbers["miIoU"] == pytest.approx(np.mean(classes), abs=1e-12)
    expected = [hit / (hit + missed + false) for hit, missed, false in categories.values()]
    assert numbers["category_miIoU"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_labels_are_bytes(tmp_path):
    save(tmp_path / "truth" / "a.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "found" / "a.png", np.full((4, 4), 300, np.uint16))
    with pytest.raises(InputError, match=r"found/a.png has label 300"):
        semantic(tmp_path)
