"""The study's images: what is drawn is what the label says."""

import cv2
import numpy as np
import pytest

from studies.scattered_shapes import CELL, KINDS, draw

SIDE = 64


def outline(kind):
    """Corners of a shape of radius 1, drawn here anew: `(n, 2)`; the ring is a circle."""
    if kind == "square":
        return 0.75 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if kind == "triangle":
        return 1.1 * np.array([(np.sin(a), np.cos(a)) for a in np.pi + np.arange(3) * 2 * np.pi / 3])
    if kind == "cross":
        arm = np.array([(0.28, -1), (0.28, -0.28), (1, -0.28)])
        return np.concatenate([arm @ np.linalg.matrix_power([[0, 1], [-1, 0]], turn) for turn in range(4)])
    return np.array([(np.sin(a), np.cos(a)) for a in np.linspace(0, 2 * np.pi, 40)])


@pytest.fixture(scope="module")
def templates():
    """Cells with a shape of each kind at many angles, by OpenCV: `(kinds, angles, CELL²)`, of mean 0 and norm 1."""
    found = []
    for kind in KINDS:
        found.append([])
        for angle in np.linspace(-np.pi / 7, np.pi / 7, 9):
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            canvas = np.zeros((16 * CELL, 16 * CELL), np.uint8)
            for radius, value in ((0.94, 255), (0.5, 0)) if kind == "ring" else ((1, 255),):
                corners = (outline(kind) @ turn * radius * 3.35 + CELL / 2) * 16
                cv2.fillPoly(canvas, [corners.round().astype(np.int32)], value)
            cell = cv2.resize(canvas, (CELL, CELL), interpolation=cv2.INTER_AREA).astype(float).reshape(-1)
            found[-1].append((cell - cell.mean()) / np.linalg.norm(cell - cell.mean()))
    return np.array(found)


def kinds_seen(image, templates):
    """How many shapes of each kind are in an image without clutter and grain, by the template that fits best."""
    counts = [0] * len(KINDS)
    for top in range(0, SIDE, CELL):
        for left in range(0, SIDE, CELL):
            cell = image[:, top : top + CELL, left : left + CELL].mean(0).reshape(-1)
            # Of the background a cell has a slope of a few levels, of a shape at least sixty.
            if np.ptp(cell) > 45:
                counts[(templates @ (cell - cell.mean())).max(1).argmax()] += 1
    return counts


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_label_is_what_is_drawn(split, templates):
    drawn = draw(24, SIDE, split, clutter=0, grain=0.0)
    for image, label, counts in zip(drawn.images, drawn.labels, drawn.counts):
        seen = kinds_seen(image, templates)
        assert seen == counts.tolist()
        assert np.argmax(seen) == label


def test_two_shapes_decide():
    """The most frequent kind has two shapes more than the next, whatever is drawn beside it."""
    drawn = draw(500, SIDE, "train")
    ordered = np.sort(drawn.counts, axis=1)
    assert (ordered[:, -1] - ordered[:, -2] == 2).all()
    assert set(ordered[:, -1]) == {5, 6}
    assert (drawn.counts.argmax(1) == drawn.labels).all()


@pytest.mark.parametrize("count", [400, 50])
def test_classes_are_balanced(count):
    counts = np.bincount(draw(count, SIDE, "train").labels, minlength=len(KINDS))
    assert counts.sum() == count and counts.max() - counts.min() <= (count % len(KINDS) > 0)


def test_number_and_brightness_do_not_tell_the_class():
    """Means of each class differ from that of all by no more than chance allows; a square is lighter than a ring."""
    drawn = draw(2000, SIDE, "train")
    totals = drawn.counts.sum(1)
    means = np.array([totals[drawn.labels == label].mean() for label in range(len(KINDS))])
    assert np.abs(means - totals.mean()).max() < 4 * totals.std() / np.sqrt(len(totals) / len(KINDS))


def test_the_same_seed_gives_the_same_images_and_another_does_not():
    first, again, other = (draw(40, SIDE, "test", seed) for seed in (3, 3, 4))
    assert np.array_equal(first.images, again.images) and np.array_equal(first.labels, again.labels)
    assert not (first.images == other.images).all((1, 2, 3)).any()


def test_training_and_test_share_no_image():
    train, test = (draw(500, SIDE, split).images for split in ("train", "test"))
    known = {image.tobytes() for image in train}
    assert len(known) == 500
    assert not any(image.tobytes() in known for image in test)


def test_what_it_cannot_draw_is_refused():
    with pytest.raises(ValueError, match="split must be one of"):
        draw(1, SIDE, "val")
    with pytest.raises(ValueError, match="multiple of 8, 40 or more for 4 pieces"):
        draw(1, 32, "train")
    with pytest.raises(ValueError, match="multiple of 8"):
        draw(1, 60, "train")
