"""Pictures: where labels stand, which masks are the same, what curves show."""

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defocus_eval import drawing, logs
from defocus_eval.errors import InputError
from tests.defocus_eval.training_logs import evaluation, training_lines, write_log

POLYGON = [10, 10, 30, 10, 30, 25, 10, 25]


def objects_at(boxes):
    colors = drawing.OBJECT_COLORS
    return [drawing.DrawnObject(box, f"object {i}", colors[i % len(colors)], None) for i, box in enumerate(boxes)]


def draw(objects, size=(60, 80)):
    figure = Figure((3, 3), dpi=drawing.DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    drawing.draw_objects(axes, np.full((*size, 3), 128, np.uint8), objects)
    return axes


@pytest.mark.parametrize(
    "boxes",
    [
        [(2, 2, 40, 50), (2, 11, 40, 41)],
        [(2, 2 + 9 * i, 40, 50 - 9 * i) for i in range(6)],
        [(0, 0, 6, 6), (74, 0, 6, 6), (0, 54, 6, 6), (74, 54, 6, 6)],
    ],
    ids=["two", "six", "corners"],
)
def test_labels_do_not_cover_one_another(boxes):
    """Boxes at the same corner, or at those of the picture: each label finds a place of its own inside."""
    axes = draw(objects_at(boxes))
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    placed = [text.get_window_extent(renderer) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [f"object {i}" for i in range(len(boxes))]
    assert not any(a.overlaps(b) for i, a in enumerate(placed) for b in placed[:i])
    assert all(frame.x0 <= p.x0 and p.x1 <= frame.x1 and frame.y0 <= p.y0 and p.y1 <= frame.y1 for p in placed)


def test_masks_of_every_form():
    expected = np.zeros((40, 60), np.uint8)
    expected[10:25, 10:30] = 1
    rle = coco_mask.encode(np.asfortranarray(expected))
    flat = expected.reshape(-1, order="F")
    lengths = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, len(flat)]).tolist()
    for form in ([POLYGON], rle, {"size": [40, 60], "counts": lengths}):
        np.testing.assert_array_equal(drawing.decode_mask(form, 40, 60), expected)
    assert drawing.box_of_mask(expected).tolist() == [10, 10, 20, 15]
    with pytest.raises(InputError, match="60×40 pixels does not fit its image of 61×40"):
        drawing.decode_mask(rle, 40, 61)


def test_labels_tint_the_image():
    """A label takes 65 % of its pixels; 0 and 255 leave them grey."""
    axes = Figure().add_subplot()
    labels = np.array([[0, 1, 255]])
    drawing.draw_label_map(axes, np.full((1, 3), 200, np.uint8), labels)
    blue = np.array([31, 119, 180]) / 255
    expected = [[[200 / 255] * 3, 0.35 * 200 / 255 + 0.65 * blue, [200 / 255] * 3]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-6)


def test_curves_are_drawn_over_what_the_log_counts(tmp_path):
    by_epoch = [*training_lines(10, 50, 50), evaluation(1, 0.1), *training_lines(60, 100, 50), evaluation(2, 0.2)]
    by_iteration = [*training_lines(10, 50), {"mIoU": 25.0, "step": 50}]
    for records, unit, quantity, points in (
        (by_epoch, "epoch", "average precision", [(1, 0.1), (2, 0.2)]),
        (by_iteration, "iteration", "mIoU", [(50, 0.25)]),
    ):
        left, right = drawing.draw_curves(logs.read_log(write_log(tmp_path / "log.json", records))).axes
        assert left.get_xlabel() == "iteration" and right.get_xlabel() == unit and right.get_ylabel() == quantity
        assert list(zip(*right.lines[0].get_data())) == points
        steps, losses = left.lines[0].get_data()
        assert losses == pytest.approx([100 / step for step in steps])


def test_a_log_with_losses_or_evaluations_alone_is_drawn(tmp_path):
    losses = write_log(tmp_path / "losses.json", [*training_lines(10, 30), {"loss": float("nan"), "step": 40}])
    scores = write_log(tmp_path / "scores.json", [evaluation(1, 0.3)])
    for log in (losses, scores):
        assert len(drawing.draw_curves(logs.read_log(log)).axes) == 1


def test_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as an image .*; look again"):
            drawing.read_image(tmp_path / name, "look again")
