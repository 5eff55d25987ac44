"""Pictures of results, pixel by pixel: each box, name, mask and label stands where it belongs, and nowhere else.

The image that is drawn upon is of one colour, by which its two panels are found in the picture.
"""

import json
import sys

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from tests.testing import load_tool

PLAIN = np.array([150, 90, 120])
WIDTH, HEIGHT = 120, 90
BOX = (20, 30, 70, 40)
NAMES = {3: "cat", 7: "dog"}


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend("tools")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws predictions, and ground truth, of one image; gives the panels of both as `(h, w, 3)`."""
    Image.new("RGB", (WIDTH, HEIGHT), tuple(PLAIN.tolist())).save(tmp_path / "0.png")

    def draw(predictions=(), truth=(), names=NAMES, threshold=0.5):
        # One prediction, too low to be drawn, is there at least.
        low = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.001}
        results = [{"image_id": 1, "score": 0.9, "category_id": 3, **item} for item in predictions]
        annotations = [
            {"id": i, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 1, **item}
            for i, item in enumerate(truth, 1)
        ]
        content = {
            "images": [{"id": 1, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}],
            "annotations": annotations,
            "categories": [{"id": key, "name": name} for key, name in names.items()],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        (tmp_path / "predictions.json").write_text(json.dumps([low, *results]))
        arguments = ["--annotations", tmp_path / "truth.json", "--images", tmp_path, "--out", tmp_path / "out"]
        arguments += ["--predictions", tmp_path / "predictions.json", "--score-threshold", threshold]
        monkeypatch.setattr(sys, "argv", ["show_results.py", *map(str, arguments)])
        load_tool("show_results").main()
        return panels(tmp_path / "out/predictions.png")

    return draw


def panels(path, plain=PLAIN):
    """The two places of the image in a picture: columns and rows that hold much of its colour."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    plain = (np.abs(picture - plain) <= 2).all(-1)
    rows = np.flatnonzero(plain.mean(1) > 0.2)
    columns = np.flatnonzero(plain.mean(0) > 0.2)
    left, right = np.split(columns, [np.diff(columns).argmax() + 1])
    assert np.diff(columns).max() > 3, "ground truth and predictions are not apart"
    assert abs(len(left) - len(right)) <= 2 and abs(len(left) / len(rows) - WIDTH / HEIGHT) < 0.05
    return [picture[rows[0] : rows[-1] + 1, side[0] : side[-1] + 1] for side in (left, right)]


def changed(panel):
    """Where something is drawn, `(h, w)`."""
    return (np.abs(panel - PLAIN) > 12).any(-1)


def on_frame(panel, box):
    """The shares of a box' four sides, left, right, top and bottom, that are drawn within a pixel of the image."""
    scale = panel.shape[1] / WIDTH
    x, y, width, height = (side * scale for side in box)
    drawn, reach = changed(panel), round(scale)

    def near(row, column, across):
        rows = slice(max(round(row) - reach * across[0], 0), round(row) + reach * across[0] + 1)
        columns = slice(max(round(column) - reach * across[1], 0), round(column) + reach * across[1] + 1)
        return drawn[rows, columns].any()

    inner = np.linspace(0.1, 0.9, 30)
    return [
        np.mean([near(y + t * height, x, (0, 1)) for t in inner]),
        np.mean([near(y + t * height, x + width, (0, 1)) for t in inner]),
        np.mean([near(y, x + t * width, (1, 0)) for t in inner]),
        np.mean([near(y + height, x + t * width, (1, 0)) for t in inner]),
    ]


def at(panel, x, y):
    """The colour at a point of the image."""
    scale = panel.shape[1] / WIDTH
    return panel[round(y * scale), round(x * scale)]


@pytest.mark.parametrize("side", [0, 1])
def test_a_box_stands_where_it_is_and_on_its_side(draw, side):
    both = draw(**{("truth", "predictions")[side]: [dict(bbox=BOX)]})
    assert min(on_frame(both[side], BOX)) > 0.95
    assert not changed(both[1 - side]).any()
    # The image is seen through it.
    assert not changed(both[side])[tuple(_inside(both[side], BOX))].any()
    x, y, width, height = BOX
    assert max(on_frame(both[side], (y, x, height, width))) < 0.9


def _inside(panel, box):
    """The middle of a box, away from its frame and from a label in a corner."""
    scale = panel.shape[1] / WIDTH
    x, y, width, height = (side * scale for side in box)
    return (
        slice(round(y + 0.35 * height), round(y + 0.65 * height)),
        slice(round(x + 0.1 * width), round(x + 0.9 * width)),
    )


def label_of(panel, box):
    """What is drawn outside of a box: its label, cut out."""
    scale = panel.shape[1] / WIDTH
    drawn = changed(panel)
    x, y, width, height = (round(side * scale) for side in box)
    reach = round(scale) + 2
    drawn[max(y - reach, 0) : y + height + reach, max(x - reach, 0) : x + width + reach] = False
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return rows, columns, panel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_a_label_stands_at_its_box_and_names_its_class(draw):
    _, cat = draw([dict(bbox=BOX)])
    scale = cat.shape[1] / WIDTH
    rows, columns, text = label_of(cat, BOX)
    x, y, width, height = (side * scale for side in BOX)
    # It touches the box, and begins or ends with it.
    assert min(abs(rows[-1] - y), abs(rows[0] - y - height)) < 4 * scale
    assert min(abs(columns[0] - x), abs(columns[-1] - x - width)) < 4 * scale
    # Letters stand out from their ground.
    assert text.std() > 20
    # What the other class is called makes no difference, what this one is called makes all of it.
    assert (draw([dict(bbox=BOX)], names={3: "cat", 7: "hippopotamus"})[1] == cat).all()
    renamed = draw([dict(bbox=BOX)], names={3: "hippopotamus", 7: "dog"})[1]
    assert len(label_of(renamed, BOX)[1]) > 1.5 * len(columns)
    assert not (draw([dict(bbox=BOX)], names={3: "cow", 7: "dog"})[1] == cat).all()
    # The score is said, too.
    assert not (draw([dict(bbox=BOX, score=0.7)])[1] == cat).all()


def test_classes_have_colours_of_their_own(draw):
    others = [draw([dict(bbox=BOX, category_id=key)])[1] for key in NAMES]
    x, y, _, height = BOX
    scale = others[0].shape[1] / WIDTH
    # The frame's own colour, between its rims.
    reach = round(scale) + 1
    colours = []
    for panel in others:
        row, column = round((y + height / 2) * scale), round(x * scale)
        line = panel[row, column - reach : column + reach]
        colours.append(line[line.std(1).argmax()])
    assert np.abs(colours[0] - colours[1]).max() > 60


def test_the_threshold_is_the_lowest_score_that_is_drawn(draw):
    for score, is_drawn in ((0.5, True), (0.49999, False)):
        panel = draw([dict(bbox=BOX, score=score)], threshold=0.5)[1]
        assert changed(panel).any() == is_drawn, score


@pytest.mark.parametrize("side", [0, 1])
def test_a_mask_is_seen_where_it_is(draw, side):
    x, y, width, height = BOX
    # The lower left half of the box.
    triangle = [[x, y, x, y + height, x + width, y + height]]
    masked = dict(bbox=BOX, segmentation=triangle)
    # Masks are drawn where predictions have them.
    panel = draw(predictions=[masked if side else dict(masked, bbox=[0, 0, 1, 1])], truth=[masked])[side]
    tint = at(panel, x + 0.2 * width, y + 0.7 * height) - PLAIN
    assert 30 < np.abs(tint).max() < 200
    other = at(panel, x + 0.75 * width, y + 0.45 * height)
    assert (np.abs(other - PLAIN) <= 2).all()
    # One class, one colour: each pixel lies between the image and it.
    for share in (0.1, 0.3, 0.5):
        assert np.abs(at(panel, x + share * width, y + 0.85 * height) - PLAIN - tint).max() <= 3


def test_labels_of_pixels_stand_where_they_are(tmp_path, monkeypatch):
    """Of mmseg's maps: truth on the left, prediction on the right, no colour for label 0 and for what is ignored."""
    grey = np.array([128, 128, 128])
    for name, blocks in {"truth": {1: (0, 0), 255: (60, 60)}, "predictions": {2: (30, 60), 1: (60, 0)}}.items():
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, (y, x) in blocks.items():
            labels[y : y + 30, x : x + 60] = label
        (tmp_path / name).mkdir()
        Image.fromarray(labels).save(tmp_path / name / "0.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), tuple(grey.tolist())).save(tmp_path / "images/0.png")
    arguments = ["--images", tmp_path / "images", "--annotations", tmp_path / "truth", "--out", tmp_path / "out"]
    arguments += ["--predictions", tmp_path / "predictions", "--classes", "ground", "one", "two"]
    monkeypatch.setattr(sys, "argv", ["show_segmentation.py", *map(str, arguments)])
    load_tool("show_segmentation").main()
    truth, prediction = (
        # The middle of each of the six blocks of 30 × 60 pixels.
        [[at(panel, x, y) - grey for x in (30, 90)] for y in (15, 45, 75)]
        for panel in panels(tmp_path / "out/predictions.png", grey)
    )
    one, two = truth[0][0], prediction[1][1]
    assert np.abs(one).max() > 30 and np.abs(two).max() > 30 and np.abs(one - two).max() > 30
    for found, expected in ((truth, ((one, 0), (0, 0), (0, 0))), (prediction, ((0, 0), (0, two), (one, 0)))):
        for row in range(3):
            for column in range(2):
                assert np.abs(found[row][column] - expected[row][column]).max() <= 3, (row, column)
