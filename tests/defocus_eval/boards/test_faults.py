"""What a board would reject, or score as nonsense, is refused with its entry and the cure, and nothing is written."""
# ruff: noqa: E501  a fault is a row of a table

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from defocus_eval.boards import BOARDS, board_named, make_submission
from defocus_eval.errors import InputError
from tests.defocus_eval.boards.drawn import FRAMES, MAKERS, box_mask, detections, save, to_colours, to_rle


def entry(index, **changes):
    """Changes an entry of a results file; None takes a key out."""

    def change(content):
        for key, value in changes.items():
            if value is None:
                del content[index][key]
            else:
                content[index][key] = value

    return lambda case: case.change(change)


def entries(make):
    return lambda case: case.rewrite(make)


def in_place(change):
    return lambda case: case.change(change)


def text(content):
    return lambda case: case.predictions.write_text(content)


def truth(make):
    return lambda case: case.rewrite(make, case.images)


def truth_in_place(change):
    return lambda case: case.change(change, case.images)


def corners(content):
    for found in content:
        x, y, width, height = found["bbox"]
        found["bbox"] = [x, y, x + width, y + height]


def broken_code(counts):
    return entry(4, segmentation={"size": [28, 36], "counts": counts})


BOXES = [
    ("no file", lambda case: case.predictions.unlink(), {}, r"cannot read .*; give"),
    ("an empty file", text(""), {}, r"is empty; give"),
    ("a file that breaks off", lambda c: c.predictions.write_text(c.predictions.read_text()[:-9]), {}, "not a JSON"),
    ("no text", lambda case: case.predictions.write_bytes(b"\x80\x02}q\xff"), {}, r"not a text file; give"),
    ("an object", text("{}"), {}, r"no predictions; give"),
    ("a number", text("5"), {}, r"holds a int, not a list; give"),
    ("an empty list", text("[]"), {}, r"holds no predictions"),
    ("an entry that is none", entries(lambda c: [*c[:1], 5, *c[2:]]), {}, r"entry 2 is no object; write"),
    ("no image_id", entry(1, image_id=None), {}, r"entry 2 has no image_id; write"),
    ("no category_id", entry(4, category_id=None), {}, r"entry 5 has no category_id; write"),
    ("no score", entry(8, score=None), {}, r"entry 9 has no score; write"),
    ("no box", entry(0, bbox=None), {}, r"entry 1 has no bbox or segmentation; write"),
    ("an unknown image", entry(2, image_id=8), {}, r"entry 3: image_id 8 does not occur in .*; give"),
    ("an image's id as text", entry(2, image_id="7"), {}, r"entry 3: image_id '7' is no whole number; write"),
    ("a class numbered by training", entry(3, category_id=0), {}, r"entry 4: category_id 0 does not occur in .*; give"),
    ("a score as text", entry(5, score="0.9"), {}, r"entry 6: score '0.9' is not a number; write"),
    ("a score that is no number", entry(5, score=float("nan")), {}, r"entry 6: score is not finite; write"),
    ("an infinite score", entry(6, score=float("inf")), {}, r"entry 7: score is not finite; write"),
    ("a logit", entry(6, score=3.5), {}, r"entry 7: score 3.5 does not lie between 0 and 1; write probabilities"),
    ("a negative score", entry(0, score=-0.5), {}, r"entry 1: score -0.5 does not lie between 0 and 1; write"),
    ("three numbers of a box", entry(1, bbox=[1, 2, 3]), {}, r"entry 2: bbox .* is not 4 numbers; write"),
    ("a box without end", entry(1, bbox=[1, 2, float("inf"), 3]), {}, r"entry 2: bbox .* is no box; write"),
    ("a negative width", entry(7, bbox=[9, 2, -3, 3]), {}, r"entry 8: bbox .* is no box; write"),
    ("a box outside of its image", entry(2, bbox=[60, 2, 1, 1]), {}, r"entry 3: bbox .* lies outside .* 40×30; write"),
    ("corners", in_place(corners), {}, r"entry 3: bbox .* beyond its image of 40×30, .* 4 of 9; .* not two corners"),
    ("an image left out", entries(lambda c: c[:6]), {}, r"no detection in 1 of 3 images, ids 12; .* --known-empty"),
    ("two images left out", entries(lambda c: c[3:6]), {}, r"no detection in 2 of 3 images, ids 7 12; run"),
    ("an image answered twice", entries(lambda c: c + c[3:6]), {}, r"entry 10 repeats entry 4, .* image 9.*; keep one"),
    ("an empty one unknown", None, {"known_empty": ["8"]}, r"8 is said to be empty, but is neither .*; correct"),
    ("an empty one answered", None, {"known_empty": ["9"]}, r"entry 4 finds something in image 9, .*; correct"),
    ("masks of a box file", None, {"task": "segm"}, r"holds boxes, coco-test-dev takes masks; give"),
    ("no statement", None, {"external_data": " "}, r"must be stated; name every set with --external-data"),
    ("a method of two words", None, {"method": "De focus"}, r"'De focus' becomes a part .*; write letters"),
    ("a method that is a path", None, {"method": "a/b"}, r"'a/b' becomes a part .*; write letters"),
    ("negative decimals", None, {"decimals": -1}, r"--decimals is a number of digits, got -1; COCO recommends 1"),
    ("labels for boxes", None, {"labels": "train"}, r"--labels does nothing for coco-test-dev.*; drop it"),
    ("no list of images", lambda case: case.images.unlink(), {}, r"cannot read .*; give"),
    ("a list without images", truth(lambda c: {**c, "images": []}), {}, r"lists no images; give"),
    (
        "another list",
        truth(lambda c: {**c, "images": c["images"][:2], "annotations": []}),
        {},
        r"lists 2 images, .* 3 ",
    ),
    (
        "a list without sizes",
        truth_in_place(lambda c: c["images"][1].pop("width")),
        {},
        r"image 2 \(id 9\) has no width.*; give",
    ),
    ("no ground truth", truth(lambda c: {**c, "annotations": []}), {"rehearsal": True}, r"no ground truth .*; give"),
    ("a folder of images", lambda c: shutil.move(c.images, c.images.with_suffix("")), {}, r"cannot read .*; give"),
]
MASKS = [
    ("no code", entry(1, segmentation=5), {}, r"entry 2: segmentation is no mask .*; write a run-length code"),
    (
        "a polygon of two corners",
        entry(1, segmentation=[[1, 1, 2, 2]]),
        {},
        r"entry 2: segmentation is no mask .*; write",
    ),
    ("height and width swapped", entry(3, segmentation={"size": [36, 28], "counts": "00"}), {}, r"entry 4: .* size"),
    (
        "too short a code",
        broken_code(to_rle(box_mask((1, 1, 5, 5), (36, 27)))["counts"]),
        {},
        r"entry 5: .* add up to 972",
    ),
    ("a code that breaks off", broken_code("Q"), {}, r"entry 5: .*\(its counts break off\); encode"),
    ("a code with other letters", broken_code("é~"), {}, r"entry 5: .*letters that no code has.*; encode"),
    ("a code with a space", broken_code("0 0"), {}, r"entry 5: .*letters that no code has.*; encode"),
    ("an empty code", broken_code(""), {}, r"entry 5: .*counts are empty.*; encode"),
    ("a negative run", broken_code("O"), {}, r"entry 5: .*negative.*; encode"),
    ("an endless run", broken_code("o" * 20 + "0"), {}, r"entry 5: .*too long.*; encode"),
    ("boxes of a mask file", None, {"task": "bbox"}, r"holds masks, coco-val takes boxes; give"),
    (
        "no task for two",
        entries(lambda c: [{k: e[k] for k in sorted(e)} for e in c]),
        {},
        r"boxes and masks.*--task bbox",
    ),
]


def annotation(index, change):
    return lambda case: case.change(lambda content: change(content["annotations"][index]))


def segment(index, number, **changes):
    return annotation(index, lambda found: found["segments_info"][number].update(changes))


def repaint(folder, ids):
    return lambda case: save(ids, case.folder / folder)


PANOPTIC = [
    ("no image_id", annotation(1, lambda found: found.pop("image_id")), {}, r"annotation 2 has no image_id; write"),
    ("an unknown image", annotation(2, lambda f: f.update(image_id=8)), {}, r"annotation 3: image_id 8 is not .*; give"),
    ("an image twice", annotation(2, lambda f: f.update(image_id=7)), {}, r"annotation 3: image 7 was answered .*; keep"),
    ("an image left out", lambda c: c.change(lambda f: f["annotations"].pop()), {}, r"1 of 3 images.*id 12; predict"),
    ("an unknown class", segment(0, 1, category_id=5), {}, r"annotation 1: category_id 5 is not .*; write"),
    ("a segment of id 0", segment(1, 0, id=0), {}, r"annotation 2: segment id 0 is no whole number from 1.*; 0 is"),
    ("too large an id", segment(1, 0, id=256**3), {}, r"annotation 2: segment id 16777216 is no whole number from 1 to"),
    ("an id twice", segment(1, 0, id=70000), {}, r"annotation 2: segment 70000 stands there twice; give"),
    ("a segment without class", annotation(0, lambda f: f["segments_info"][0].pop("category_id")), {}, r"annotation 1: a segment has no category_id; write"),
    ("no folder", lambda c: shutil.rmtree(c.folder / "val.panoptic"), {}, r"lies in none of .*; give the folder"),
    ("a PNG left out", lambda c: next(c.folder.glob("val.pan*/*12.png")).unlink(), {}, r"000012.png does not exist; give"),
    ("a PNG of one colour", repaint("val.panoptic/000000000009.png", np.zeros((28, 36), np.uint8)), {}, r"09.png is .* RGB"),
    ("a PNG of another size", repaint("val.panoptic/000000000009.png", to_colours(np.zeros((28, 35), int))), {}, r"annotation 2: .* is 35×28, its image 36×28; write"),
    ("a PNG with another id", repaint("val.panoptic/000000000009.png", to_colours(np.full((28, 36), 3))), {}, r"annotation 2: .* has 1,008 pixels of id 3.*; write"),
    ("no PNG", lambda c: (c.folder / "val.panoptic/000000000007.png").write_bytes(b"PNG"), {}, r"007.png cannot be read .*; write"),
    ("classes of objects", truth_in_place(lambda c: c["categories"][1].pop("isthing")), {}, r"category 2 \(grass\) has no isthing"),
    ("classes of objects in a test list", truth(lambda c: {"images": c["images"], "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "grass"}]}), {}, r"category 1 \(person\) has no isthing: .*--categories"),
    ("boxes", lambda c: detections(c.folder) and shutil.move(c.folder / "val.bbox.json", c.predictions), {}, r"panoptic.*; give"),
]  # fmt: skip


def map_of(name, change):
    def fault(case):
        path = case.predictions / name
        save(change(np.array(Image.open(path))), path)

    return fault


def all_maps(change):
    return lambda case: [save(change(np.array(Image.open(p))), p) for p in sorted(case.predictions.glob("*.png"))]


def with_label(label):
    def change(labels):
        labels[4, 5] = label
        return labels

    return change


ADE20K = [
    ("no folder", lambda case: shutil.rmtree(case.predictions), {}, r"cannot read .*; give"),
    ("no maps", lambda c: [p.unlink() for p in c.predictions.iterdir()], {}, r"no PNG for 3 of 3 images.*; predict"),
    ("a map left out", lambda c: (c.predictions / "ADE_val_00000002.png").unlink(), {}, r"1 of 3 images.*0002.png; predict"),
    ("a photograph for a map", lambda c: shutil.move(c.predictions / "ADE_val_00000002.png", c.predictions / "ADE_val_00000002.jpg"), {}, r"1 of 3 images.*0002.png; predict"),
    ("an image twice", lambda c: shutil.copytree(c.predictions, c.predictions / "again"), {}, r"both answer ADE_val_00000001.png; keep"),
    ("another size", map_of("ADE_val_00000003.png", lambda m: m[:, 1:]), {}, r"0003.png is 23×24, its ground truth 24×24; write"),
    ("colours", map_of("ADE_val_00000001.png", lambda m: np.stack([m] * 3, -1)), {}, r"0001.png is .* mode RGB.*; write"),
    ("a label too many", map_of("ADE_val_00000002.png", with_label(151)), {}, r"0002.png holds label 151 \(row 4, column 5\).*0 to 150; write"),
    ("numbered from 0", all_maps(lambda m: m - 1), {}, r"holds label 0 in 3 of 3 maps and 150 in none: .*--labels train"),
    ("translated twice", None, {"labels": "train"}, r"0001.png holds label 150 .*training has 0 to 149; leave out --labels"),
    ("no PNG", lambda c: (c.predictions / "ADE_val_00000002.png").write_bytes(b"\x89PNG"), {}, r"0002.png cannot be read .*; write"),
    ("a task", None, {"task": "segm"}, r"--task does nothing for ade20k.*; drop it"),
]  # fmt: skip
CITYSCAPES = [
    ("train ids", all_maps(lambda m: np.searchsorted([7, 8, 11, 26, 33], m).astype(np.uint8)), {}, r"no label above 4 in 3 maps: train ids.*--labels train"),
    ("a label too many", map_of(f"{FRAMES[1]}.png", with_label(34)), {}, r"000001_000019.png holds label 34 \(row 4, column 5\).*0 to 33; write"),
    ("a map left out", lambda c: (c.predictions / f"{FRAMES[2]}.png").unlink(), {}, r"1 of 3 images.*bochum.*; predict"),
    ("two for one image", lambda c: shutil.copy(c.predictions / f"{FRAMES[0]}.png", c.predictions / f"{FRAMES[0]}_pred.png"), {}, r"both answer aachen_000000_000019.*; keep"),
    ("other names", lambda c: [p.rename(p.with_name(p.name.replace("_gtFine_labelIds", "")[7:])) for p in c.images.iterdir()], {}, r"is not named <city>.*; give"),
]  # fmt: skip


def lines(number, content):
    return lambda case: (case.predictions / f"{FRAMES[number]}_pred.txt").write_text(content)


def mask_of(name, mask):
    return lambda case: save(mask, case.predictions / f"{FRAMES[0]}_{name}.png")


INSTANCES = [
    ("a text file left out", lambda c: (c.predictions / f"{FRAMES[1]}_pred.txt").unlink(), {}, r"1 of 3 images.*aachen_000001_000019; predict"),
    ("two text files", lambda c: shutil.copytree(c.predictions, c.predictions / "again"), {}, r"both answer aachen_000000_000019; keep"),
    ("no folder", lambda c: shutil.rmtree(c.predictions), {}, r"is no folder; give"),
    ("a line of two parts", lines(1, "a.png 24\n"), {}, r"line 1: 'a.png 24' has 2 parts; write"),
    ("a path with a space", lines(1, "traffic light.png 24 0.5\n"), {}, r"line 1: .* has 4 parts; write"),
    ("a path from the root", lines(1, "/a.png 24 0.5\n"), {}, r"line 1: /a.png leads out .*; write"),
    ("a path out of the folder", lines(1, "../truth/a.png 24 0.5\n"), {}, r"line 1: ../truth/a.png leads out .*; write"),
    ("a label in words", lines(1, "a.png car 0.5\n"), {}, r"line 1: label 'car' is no whole number; write"),
    ("a score in words", lines(1, "a.png 24 high\n"), {}, r"line 1: score 'high' is no finite number; write"),
    ("a score that is none", lines(1, "a.png 24 nan\n"), {}, r"line 1: score 'nan' is no finite number; write"),
    ("an unknown label", lines(1, "a.png 34 0.5\n"), {}, r"line 1: label 34 is not known to the board; write label ids: 24"),
    ("a mask left out", lines(1, "a.png 24 0.5\n"), {}, r"line 1: .*a.png does not exist"),
    ("a mask twice", lines(1, f"{FRAMES[1]}_33.png 33 0.5\n{FRAMES[1]}_33.png 24 0.4\n"), {}, r"line 2: .*_33.png stands in .*line 1 too.*; write"),
    ("another size", mask_of(26, np.ones((30, 41), np.uint8)), {}, r"line 1: .*_26.png is 41×30, its image 40×30; write"),
    ("colours", mask_of(24, np.ones((30, 40, 3), np.uint8)), {}, r"line 2: .*_24.png is .* mode RGB.*; write"),
    ("train ids", lambda c: [p.write_text(re.sub(r" (\d+) ", " 13 ", p.read_text())) for p in c.predictions.glob("*.txt")], {}, r"line 1: label 13, .*train ids.*--labels train"),
    ("translated twice", None, {"labels": "train"}, r"line 1: label 26 is no train id .*; leave out --labels train"),
]  # fmt: skip

FAULTS = [
    *(("coco-test-dev", *fault) for fault in BOXES),
    *(("coco-val", *fault) for fault in MASKS),
    *(("coco-panoptic", *fault) for fault in PANOPTIC),
    *(("ade20k", *fault) for fault in ADE20K),
    *(("cityscapes", *fault) for fault in CITYSCAPES),
    *(("cityscapes-instances", *fault) for fault in INSTANCES),
]


@pytest.mark.parametrize(
    ("board", "fault", "changes", "message"),
    [fault[:1] + fault[2:] for fault in FAULTS],
    ids=[f"{board}-{name.replace(' ', '-')}" for board, name, *_ in FAULTS],
)
def test_a_fault_is_refused_with_its_entry_and_cure(board, fault, changes, message, tmp_path):
    case = MAKERS[board](tmp_path)
    if fault is not None:
        fault(case)
    request = case.request(board, **changes)
    with pytest.raises(InputError, match=message) as refused:
        make_submission(request, case.out)
    # What is to be done is said after what is wrong.
    assert "; " in str(refused.value) or "--" in str(refused.value)
    assert not case.out.exists() or not list(case.out.iterdir())


@pytest.mark.parametrize("board", BOARDS)
def test_without_a_fault_nothing_is_refused(board, tmp_path):
    case = MAKERS[board](tmp_path)
    submission = make_submission(case.request(board), case.out)
    assert sorted(case.out.iterdir()) == sorted([submission.path, submission.sheet])


def test_there_are_enough_kinds():
    assert len({(fault, message) for _, fault, _, _, message in FAULTS}) >= 40
    assert {board for board, *_ in FAULTS} == set(BOARDS) - {"coco-test-challenge", "lvis", "lvis-fixed", "objects365"}


def test_the_boards_own_number_of_images_is_asked_for(tmp_path):
    case = detections(tmp_path)
    for name, count in (("coco-test-dev", "20,288"), ("coco-val", "5,000"), ("coco-test-challenge", "40,670")):
        request = replace(case.request(name), board=board_named(name))
        with pytest.raises(InputError, match=f"lists 3 images, {name} wants the {count} of"):
            make_submission(request, case.out)


def test_cityscapes_has_one_size(tmp_path):
    case = MAKERS["cityscapes"](tmp_path)
    request = case.request("cityscapes")
    request = replace(request, board=replace(request.board, size=(2048, 1024)))
    with pytest.raises(InputError, match="is 24×20, images of Cityscapes are 2048×1024; give"):
        make_submission(request, case.out)


def test_a_package_that_is_there_is_kept(tmp_path):
    case = detections(tmp_path)
    first = make_submission(case.request("coco-test-dev"), case.out)
    before = first.path.read_bytes()
    case.change(lambda content: content[0].update(score=0.001))
    with pytest.raises(InputError, match=r"_Drawn_results.zip is there already; remove it"):
        make_submission(case.request("coco-test-dev"), case.out)
    assert first.path.read_bytes() == before


def test_out_must_be_a_folder(tmp_path):
    case = detections(tmp_path)
    with pytest.raises(InputError, match=r"is a file; give a folder"):
        make_submission(case.request("coco-test-dev"), case.predictions)
    assert json.loads(case.predictions.read_text())
