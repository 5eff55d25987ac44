"""What is said and drawn of a prediction, at a threshold of the score."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from backbones.integrations.app.predictions import Found, Prediction, best_objects, describe, draw

GREY = np.full((40, 60, 3), 128, np.uint8)
# The first two colours of matplotlib's tab10.
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def count(picture, color):
    return (abs(picture.astype(int) - color).sum(-1) < 12).sum()


def test_objects_are_kept_by_their_scores():
    boxes = np.array([[1.0, 2, 11, 22], [0, 0, 5, 5]])
    masks = np.zeros((2, 4, 4))
    masks[1, 0] = 1
    first, second = best_objects(boxes, np.array([0.25, 0.75]), np.array([1, 0]), masks)
    assert (first.box, first.label, first.score, first.mask.sum()) == ((0, 0, 5, 5), 0, 0.75, 4)
    assert (second.box, second.label, second.mask.any()) == ((1, 2, 10, 20), 1, False)
    assert len(best_objects(np.zeros((150, 4)), np.linspace(0, 1, 150), np.zeros(150))) == 100


def test_objects_below_the_threshold_are_neither_said_nor_drawn():
    mask = np.zeros((40, 60), bool)
    mask[5:15, 5:15] = True
    prediction = Prediction(
        ["cat", "dog"],
        (Found((5, 5, 10, 10), 0, 0.9, mask), Found((30, 10, 20, 20), 1, 0.5), Found((0, 0, 4, 4), 2, 0.1)),
    )
    assert describe(prediction, 0.5) == "2 objects of score ≥ 0.50: 1 cat, 1 dog"
    assert describe(prediction, 0) == "3 objects of score ≥ 0.00: 1 cat, 1 dog, 1 2"
    assert describe(prediction, 0.95) == "0 objects of score ≥ 0.95; the best has 0.90"
    assert describe(Prediction([], ()), 0.5) == "0 objects of score ≥ 0.50"
    both, one, none = (draw(GREY, prediction, threshold) for threshold in (0.5, 0.8, 0.95))
    assert count(both, BLUE) > 0 and count(both, ORANGE) > 0
    assert count(one, BLUE) > 0 and count(one, ORANGE) == 0
    assert (none == 128).all()
    # The mask shows the image through.
    tinted = np.round(128 + 0.45 * (np.array(BLUE) - 128))
    assert count(one, tinted) > 0.5 * 100 * (one.shape[1] / 60) ** 2


def test_pixels_that_are_not_sure_have_no_colour():
    labels = np.zeros((40, 60), int)
    labels[:, 30:] = 1
    certainty = np.full((40, 60), 0.6)
    certainty[20:] = 0.9
    prediction = Prediction(["nothing", "road"], labels=labels, certainty=certainty)
    assert describe(prediction, 0.5).startswith("100 % of the pixels have a probability ≥ 0.50: ")
    assert describe(prediction, 0.8) == "50 % of the pixels have a probability ≥ 0.80: nothing 25 %, road 25 %"
    tinted = np.round(0.35 * 128 + 0.65 * np.array(BLUE))
    all_pixels, sure = (count(draw(GREY, prediction, threshold), tinted) for threshold in (0.5, 0.8))
    assert sure == pytest.approx(all_pixels / 2, rel=0.05) and sure > 1000
    assert (draw(GREY, prediction, 0.95) == 255).any()


def test_classes_of_the_whole_image_and_a_network_without_a_head():
    assert describe(Prediction(["a", "b"], classes=np.array([0.25, 0.75])), 0.5) == "b 0.75, a 0.25"
    assert "no head" in describe(Prediction([]), 0.5)


def test_things_and_stuff_have_names_of_their_own():
    labels = np.zeros((40, 60), int)
    prediction = Prediction(["cat"], (), labels, np.ones((40, 60)), label_names=["grass"])
    assert "grass 100 %" in describe(prediction, 0.5)
    picture = draw(GREY, prediction, 0.5)
    assert picture.shape[0] > 1.2 * picture.shape[1] * 40 / 60
