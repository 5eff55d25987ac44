"""What is in a package: names, root of the zip, content, mends; and that it is written whole or not at all."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from defocus_eval.boards import BOARDS, board_named, make_submission
from defocus_eval.boards import archive as archives
from defocus_eval.errors import InputError
from defocus_eval.files import sha256
from tests.defocus_eval.boards.drawn import FRAMES, MAKERS, SIZES, detections, save


def contents(submission):
    with zipfile.ZipFile(submission.path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def results(submission):
    ((name, content),) = contents(submission).items()
    return name, json.loads(content)


def image(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("board", "package", "names"),
    [
        ("coco-test-dev", "detections_test-dev2017_Drawn_results", ["detections_test-dev2017_Drawn_results.json"]),
        (
            "coco-test-challenge",
            "detections_test-challenge2017_Drawn_results",
            ["detections_test-challenge2017_Drawn_results.json"],
        ),
        ("coco-val", "detections_val2017_Drawn_results", ["detections_val2017_Drawn_results.json"]),
        (
            "coco-panoptic",
            "panoptic_test-dev2017_Drawn_results",
            [
                *(f"panoptic_test-dev2017_Drawn_results/{i:012}.png" for i in SIZES),
                "panoptic_test-dev2017_Drawn_results.json",
            ],
        ),
        ("lvis", "lvis_v1_test-dev_Drawn_results", ["lvis_v1_test-dev_Drawn_results.json"]),
        ("objects365", "objects365_val_Drawn_results", ["objects365_val_Drawn_results.json"]),
        ("ade20k", "ade20k_test_Drawn", [f"ADE_val_{i:08}.png" for i in (1, 2, 3)]),
        ("cityscapes", "cityscapes_test_Drawn", [f"{frame}.png" for frame in FRAMES]),
        (
            "cityscapes-instances",
            "cityscapes_instances_test_Drawn",
            [f"{f}{e}" for f, n in zip(FRAMES, (2, 1, 2)) for e in [*(f"_{i}.png" for i in range(n)), ".txt"]],
        ),
    ],
)
def test_names(board, package, names, tmp_path):
    case = MAKERS[board](tmp_path)
    submission = make_submission(case.request(board), case.out)
    assert submission.path == case.out / f"{package}.zip"
    assert list(contents(submission)) == names


def test_a_rehearsal_bears_the_name_of_its_split(tmp_path):
    case = detections(tmp_path)
    submission = make_submission(case.request("coco-test-dev", rehearsal=True, external_data=""), case.out)
    assert submission.path.name == "detections_val2017_Drawn_results.zip"


def test_boxes_are_what_the_board_takes(tmp_path):
    case = detections(tmp_path)
    before = json.loads(case.predictions.read_text())
    case.rewrite(lambda content: [{**found, "segmentation_id": 3} for found in reversed(content)])
    submission = make_submission(case.request("coco-test-dev"), case.out)
    _, after = results(submission)
    # By image, the best first, as they were before they were turned round.
    assert [set(entry) for entry in after] == [{"image_id", "category_id", "bbox", "score"}] * 9
    for key in ("image_id", "category_id", "bbox"):
        assert [entry[key] for entry in after] == [entry[key] for entry in before]
    # 32 bits of a score are as many digits as it needs: 0.8799999952316284 is 0.88.
    assert [entry["score"] for entry in after[:3]] == [0.88, 0.68, 0.48]
    assert np.array_equal(np.float32([e["score"] for e in after]), np.float32([e["score"] for e in before]))
    assert submission.content.mends == [
        "8 entries put in order, by image and score",
        "9 entries rid of keys that the board does not take: segmentation_id",
        "9 scores written without digits that their 32 bits never held",
    ]
    assert submission.content.summary == "9 boxes in 3 of 3 images"


def test_scores_of_64_bits_stay(tmp_path):
    case = detections(tmp_path).change(lambda content: content[0].update(score=1 / 3))
    _, after = results(make_submission(case.request("coco-test-dev"), case.out))
    before = json.loads(case.predictions.read_text())
    assert sorted(entry["score"] for entry in after) == sorted(entry["score"] for entry in before)


def test_boxes_are_rounded_on_demand(tmp_path):
    case = detections(tmp_path)
    submission = make_submission(case.request("coco-test-dev", decimals=1), case.out)
    _, after = results(submission)
    assert after[0]["bbox"] == [3.4, 3, 19, 12.2] and after[1]["bbox"] == [10, 6.1, 17.5, 13]
    assert "6 boxes rounded to 1 digits" in submission.content.mends


def test_masks_lose_their_boxes_and_polygons_are_encoded(tmp_path):
    case = MAKERS["coco-val"](tmp_path)
    case.change(lambda content: content[1].update(segmentation=[[10, 6, 28, 6, 28, 19, 10, 19]]))
    submission = make_submission(case.request("coco-val"), case.out)
    _, after = results(submission)
    assert [set(entry) for entry in after] == [{"image_id", "category_id", "segmentation", "score"}] * 9
    assert all(isinstance(entry["segmentation"]["counts"], str) for entry in after)
    assert any("bbox was taken out of 9 entries" in note for note in submission.content.notes)
    assert any("1 masks were polygons" in note for note in submission.content.notes)


@pytest.mark.parametrize(("board", "key"), [("coco-test-dev", "image_id"), ("lvis-fixed", "category_id")])
def test_the_best_are_kept(board, key, tmp_path):
    limit = 2
    case = MAKERS[board](tmp_path)
    # The second and the third of an image are equal; the second comes first.
    case.change(lambda content: [found.update(score=0.5) for found in content if found["category_id"] == 18])
    case.change(lambda content: [found.update(score=0.5) for found in content if found["category_id"] == 3])
    before = json.loads(case.predictions.read_text())
    request = case.request(board)
    of = {"image_id": "per_image", "category_id": "per_class"}[key]
    request = replace(request, board=replace(request.board, **{of: limit}))
    submission = make_submission(request, case.out)
    _, after = results(submission)
    expected = []
    for value in dict.fromkeys(entry[key] for entry in before):
        expected += sorted((e for e in before if e[key] == value), key=lambda e: -e["score"])[:limit]
    places = [sorted((entry["image_id"], entry["category_id"]) for entry in kept) for kept in (after, expected)]
    assert places[0] == places[1]
    assert submission.content.cut and submission.content.mends[0].startswith("3 detections left out beyond the best 2 ")


def test_limits_are_those_of_the_boards():
    assert {
        name: (board.per_image, board.per_class) for name, board in BOARDS.items() if board.kind == "detections"
    } == {
        "coco-test-dev": (100, None),
        "coco-test-challenge": (100, None),
        "coco-val": (100, None),
        "lvis": (300, None),
        "lvis-fixed": (None, 10000),
        "objects365": (100, None),
    }


def test_images_known_to_be_empty_need_no_answer(tmp_path):
    case = detections(tmp_path).rewrite(lambda content: content[:3])
    for number, known in enumerate((["9", "12"], ["000000000009.jpg", "12"], ["all"])):
        submission = make_submission(case.request("coco-test-dev", known_empty=known), tmp_path / str(number))
        assert submission.content.summary == "3 boxes in 1 of 3 images"


def test_panoptic_is_what_the_board_takes(tmp_path):
    case = MAKERS["coco-panoptic"](tmp_path)

    def change(content):
        first = content["annotations"][0]
        first["segments_info"].append({"id": 5, "category_id": 1, "area": 0, "bbox": [], "isthing": 1})

    case.change(change)
    png = tmp_path / "val.panoptic" / f"{9:012}.png"
    save(np.dstack([np.array(Image.open(png)), np.full((28, 36), 255, np.uint8)]), png)
    submission = make_submission(case.request("coco-panoptic"), case.out)
    files = contents(submission)
    name = "panoptic_test-dev2017_Drawn_results"
    found = json.loads(files[f"{name}.json"])["annotations"]
    assert [annotation["file_name"] for annotation in found] == [f"{i:012}.png" for i in SIZES]
    for annotation in found:
        assert set(annotation) == {"image_id", "file_name", "segments_info"}
        ids = image(files[f"{name}/{annotation['file_name']}"]).astype(int) @ [1, 256, 65536]
        segments = [{"id": 258, "category_id": 1}, {"id": 70000, "category_id": 200}]
        assert annotation["segments_info"] == segments and np.unique(ids).tolist() == [0, 258, 70000]
    assert set(submission.content.mends) == {
        "1 segments left out that have no pixel",
        "6 segments rid of keys that the board does not take",
    }


def test_panoptic_classes_come_from_another_file(tmp_path):
    case = MAKERS["coco-panoptic"](tmp_path)
    categories = tmp_path / "categories.json"
    content = json.loads(case.images.read_text())
    categories.write_text(json.dumps({"categories": content["categories"]}))
    # As `image_info_test-dev2017.json`: no annotations, categories of objects.
    case.images.write_text(json.dumps({"images": content["images"], "categories": [{"id": 1, "name": "person"}]}))
    make_submission(case.request("coco-panoptic", categories=categories), case.out)


def test_label_maps_keep_their_labels(tmp_path):
    case = MAKERS["ade20k"](tmp_path)
    first = case.predictions / "ADE_val_00000001.png"
    labels = np.array(Image.open(first))
    labels[3, 4] = 255
    palette = Image.fromarray(labels).convert("P")
    palette.save(first)
    submission = make_submission(case.request("ade20k"), case.out)
    files = contents(submission)
    written = Image.open(io.BytesIO(files["ADE_val_00000001.png"]))
    assert written.mode == "L" and written.size == (24, 20)
    expected = labels.copy()
    expected[3, 4] = 0
    assert np.array_equal(np.array(written), expected)
    assert submission.content.mends == ["1 maps in which undecided pixels (255) became 0"]


@pytest.mark.parametrize(("board", "trained"), [("ade20k", [0, 3, 12, 149]), ("cityscapes", [0, 2, 13, 18])])
def test_labels_of_training_are_translated(board, trained, tmp_path):
    case = MAKERS[board](tmp_path)
    right = contents(make_submission(case.request(board), case.out))
    labels = [1, 4, 13, 150] if board == "ade20k" else [7, 11, 26, 33]
    table = np.zeros(256, np.uint8)
    table[labels] = trained
    for path in case.predictions.glob("*.png"):
        save(table[np.array(Image.open(path))], path)
    translated = make_submission(case.request(board, labels="train"), tmp_path / "translated")
    assert contents(translated) == right
    # Those who say so may mean the board's labels by the same numbers.
    kept = contents(make_submission(case.request(board, labels="board"), tmp_path / "kept"))
    assert set(np.unique(image(next(iter(kept.values()))))) == set(trained)


def test_test_images_may_be_photographs(tmp_path):
    """Of test sets there is nothing but the images; Cityscapes' are PNGs below the names of cities."""
    case = MAKERS["cityscapes"](tmp_path)
    for frame in FRAMES:
        save(np.zeros((20, 24, 3), np.uint8), tmp_path / "leftImg8bit" / frame[:6] / f"{frame}_leftImg8bit.png")
        (case.predictions / f"{frame}.png").rename(case.predictions / f"{frame}_leftImg8bit_pred.png")
    case.images = tmp_path / "leftImg8bit"
    submission = make_submission(case.request("cityscapes"), case.out)
    assert list(contents(submission)) == [f"{frame}.png" for frame in FRAMES]
    ade = MAKERS["ade20k"](tmp_path / "ade")
    for number in (1, 2, 3):
        save(np.zeros((18 + 2 * number, 24, 3), np.uint8), tmp_path / "images" / f"ADE_val_{number:08}.jpg")
    ade.images = tmp_path / "images"
    assert len(contents(make_submission(ade.request("ade20k"), ade.out))) == 3
    with pytest.raises(InputError, match="no ground truth to rehearse on"):
        make_submission(ade.request("ade20k", rehearsal=True), tmp_path / "none")


def test_instances_are_what_the_board_takes(tmp_path):
    case = MAKERS["cityscapes-instances"](tmp_path)
    file = case.predictions / f"{FRAMES[2]}_pred.txt"
    save(np.zeros((30, 40), np.uint8), case.predictions / "empty.png")
    save(np.ones((30, 40), np.uint8), case.predictions / "caravan.png")
    file.write_text(f"empty.png 26 0.99\ncaravan.png 29 0.98\n{file.read_text()}")
    submission = make_submission(case.request("cityscapes-instances"), case.out)
    files = contents(submission)
    assert files[f"{FRAMES[2]}.txt"].decode() == f"{FRAMES[2]}_0.png 26 0.9\n{FRAMES[2]}_1.png 24 0.625\n"
    source = np.array(Image.open(case.predictions / f"{FRAMES[2]}_24.png"))
    assert np.array_equal(image(files[f"{FRAMES[2]}_1.png"]), source > 0)
    assert set(submission.content.mends) == {
        "1 lines left out whose mask has no pixel",
        "1 lines left out whose label is not scored as instances",
    }


def test_the_sheet_says_what_the_form_asks_for(tmp_path):
    case = detections(tmp_path)
    request = case.request("coco-test-dev", external_data="ImageNet-1K, for pre-training")
    submission = make_submission(request, case.out)
    text = submission.sheet.read_text()
    assert submission.sheet == case.out / "detections_test-dev2017_Drawn_results.md"
    for line in (
        "- External data: ImageNet-1K, for pre-training",
        "- Method: Drawn",
        "- Content: 9 boxes in 3 of 3 images",
        f"- SHA-256: {sha256(submission.path)}",
        "## Mended",
    ):
        assert line in text
    assert "CodaLab's COCO competitions are suspended" in text and "as last known in November 2026" in text


def test_every_board_tells_its_state_with_its_date():
    for board in BOARDS.values():
        assert board.status.startswith(f"{board.title}, as last known in November 2026: ")
    assert all("suspended" in BOARDS[name].state for name in BOARDS if name.startswith("coco"))


def test_an_unknown_board_is_refused_with_those_that_come_near():
    with pytest.raises(InputError, match="no board 'coco-testdev'; take coco-test-dev"):
        board_named("coco-testdev")


def test_the_same_content_gives_the_same_file(tmp_path):
    case = MAKERS["coco-panoptic"](tmp_path)
    first = make_submission(case.request("coco-panoptic"), tmp_path / "a")
    second = make_submission(case.request("coco-panoptic"), tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes() and first.sha256 == second.sha256
    with zipfile.ZipFile(first.path) as archive:
        # No clock is in it.
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left"), RuntimeError])
def test_an_interruption_leaves_nothing(error, tmp_path, monkeypatch):
    case = MAKERS["ade20k"](tmp_path)
    written = []

    def save_two(*arguments, **keywords):
        if len(written) == 2:
            raise error
        written.append(1)
        return original(*arguments, **keywords)

    original = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", save_two)
    with pytest.raises(InputError if isinstance(error, OSError) else error):
        make_submission(case.request("ade20k"), case.out)
    assert written and list(case.out.iterdir()) == []


def test_a_damaged_package_is_not_unpacked(tmp_path):
    case = MAKERS["ade20k"](tmp_path)
    path = make_submission(case.request("ade20k"), case.out).path
    content = bytearray(path.read_bytes())
    content[90] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot unpack"):
        archives.unpack(path, tmp_path / "unpacked")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with pytest.raises(InputError, match="leads outside of it"):
        archives.unpack(tmp_path / "evil.zip", tmp_path / "unpacked")
