"""Cityscapes' average precision against cityscapesScripts' own, and against curves worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from defocus_eval.errors import InputError
from defocus_eval.scores.cityscapes_instances import score_instances

SHAPE = (64, 96)


def write(folder, frame, objects, predictions):
    """A map of instance ids, and predictions as (label, score, mask)."""
    for name in ("truth", "pred"):
        (folder / name).mkdir(exist_ok=True)
    Image.fromarray(objects.astype(np.uint16)).save(folder / "truth" / f"{frame}_gtFine_instanceIds.png")
    lines = []
    for number, (label, score, mask) in enumerate(predictions):
        name = f"{frame}_{number}.png"
        Image.fromarray(mask).save(folder / "pred" / name)
        lines.append(f"{name} {label} {score}\n")
    (folder / "pred" / f"{frame}.txt").write_text("".join(lines))


def box(top, left, height, width):
    mask = np.zeros(SHAPE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def paint(*objects):
    painted = np.full(SHAPE, 7)
    for value, mask in objects:
        painted[mask] = value
    return painted


def test_curve_of_one_class_by_hand(tmp_path):
    """Two cars; found one well, a wrong one that is surer, one at an overlap of 0.6."""
    first, second = box(0, 0, 20, 20), box(0, 40, 20, 20)
    predictions = [
        (26, 0.9, box(40, 0, 20, 20)),
        (26, 0.8, first),
        # 20 × 15 of 20 × 20 and 20 × 5 beside it: 300 of 500.
        (26, 0.7, box(0, 45, 20, 20)),
    ]
    write(tmp_path, "aachen_000000_000019", paint((26000, first), (26001, second)), predictions)
    scores = score_instances(tmp_path / "pred", tmp_path / "truth")
    # Points of recall and precision, the surest last: (1, 2/3), (1/2, 1/2), (0, 0), and (0, 1), which is drawn on. Each
    # stands for half of the recall between its neighbours, the first for that to the second.
    at_50 = 2 / 3 * (1 - 1 / 2) / 2 + 1 / 2 * (1 - 0) / 2 + 0 + 0
    # From 0.6 on, which is not above 0.6: (1/2, 1/3), (1/2, 1/2), (0, 0).
    from_60 = 1 / 3 * 0 + 1 / 2 * (1 / 2) / 2 + 0
    assert scores["AP50"] == pytest.approx(at_50)
    assert scores["AP"] == pytest.approx((2 * at_50 + 8 * from_60) / 10)
    assert scores["per_class"]["car"] == {"AP": scores["AP"], "AP50": scores["AP50"]}
    assert np.isnan(scores["per_class"]["bus"]["AP"])


def test_void_groups_and_small_objects_do_not_count(tmp_path):
    """Predictions on them are neither right nor wrong, wherever they rank."""
    car = box(0, 0, 20, 20)
    objects = paint((26000, car), (26, box(30, 0, 20, 20)), (3, box(30, 30, 20, 20)), (26001, box(30, 60, 9, 11)))
    predictions = [
        (26, 0.9, box(30, 0, 20, 18)),
        (26, 0.9, box(30, 30, 20, 20)),
        (26, 0.9, box(30, 60, 9, 11)),
        (26, 0.5, car),
    ]
    write(tmp_path, "aachen_000000_000019", objects, predictions)
    assert score_instances(tmp_path / "pred", tmp_path / "truth")["AP"] == 1
    # One pixel more, and it is an object.
    write(tmp_path, "aachen_000000_000019", paint((26000, car), (26001, box(30, 60, 10, 10))), predictions[3:])
    assert score_instances(tmp_path / "pred", tmp_path / "truth")["AP"] < 1


def test_equals_cityscapes_scripts(tmp_path):
    """A crowded scene; the numbers are those of cityscapesScripts 2.3.0 on the files that this writes."""
    rng = np.random.default_rng(7)
    for number in range(3):
        boxes = [box(*rng.integers(0, [50, 80]), *rng.integers(8, 25, 2)) for _ in range(9)]
        labels = rng.choice([24, 26, 33], len(boxes))
        grouped = rng.random(len(boxes)) < 0.2
        objects = paint((0, box(0, 0, 10, 96)), (3, box(10, 0, 4, 96)))
        for i, mask in enumerate(boxes):
            objects[mask] = labels[i] if grouped[i] else labels[i] * 1000 + i
        predictions = []
        for _ in range(16):
            i = rng.integers(len(boxes))
            label = labels[i] if rng.random() < 0.85 else rng.choice([24, 26, 33])
            mask = np.roll(boxes[i], rng.integers(-2, 3, 2), (0, 1))
            if rng.random() < 0.4:
                mask = objects == rng.choice(np.unique(objects))
            # Rounded, so that some are equal.
            predictions.append((label, round(float(rng.random()), 1), mask))
        write(tmp_path, f"aachen_{number:06}_000019", objects, predictions)
    scores = score_instances(tmp_path / "pred", tmp_path / "truth")
    assert scores["AP"] == pytest.approx(0.18897286414565825, abs=1e-12)
    assert scores["AP50"] == pytest.approx(0.3319695827048768, abs=1e-12)
    assert scores["per_class"]["person"]["AP"] == pytest.approx(0.24612852833441065, abs=1e-12)


def test_what_is_missing_is_told(tmp_path):
    write(tmp_path, "aachen_000000_000019", paint(), [])
    assert np.isnan(score_instances(tmp_path / "pred", tmp_path / "truth")["AP"])
    with pytest.raises(InputError, match=r"holds no \*_gtFine_instanceIds.png; give"):
        score_instances(tmp_path / "pred", tmp_path / "pred")
    (tmp_path / "pred/aachen_000000_000019.txt").unlink()
    with pytest.raises(InputError, match="no text file for 1 of 1 images, the first aachen_000000_000019; predict"):
        score_instances(tmp_path / "pred", tmp_path / "truth")
