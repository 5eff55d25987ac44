"""A package, unpacked and scored, gives what the predictions give; mends change no score."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from defocus_eval.boards import BOARDS, rehearse
from tests.defocus_eval.boards.drawn import MAKERS, SIZES

NAMES = {
    "coco-panoptic": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "ade20k": ("mIoU",),
    "cityscapes": ("mIoU",),
    "cityscapes-instances": ("AP", "AP50"),
    "lvis": ("AP", "APf"),
    "lvis-fixed": ("AP", "fixed.AP"),
}


@pytest.mark.parametrize("board", BOARDS)
def test_the_package_scores_like_the_predictions(board, tmp_path):
    case = MAKERS[board](tmp_path)
    rehearsal = rehearse(case.request(board, external_data=""), case.out)
    for name in NAMES.get(board, ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100")):
        # The drawn predictions are neither all right nor all wrong, so a score says something.
        assert 0 < rehearsal.direct[name] <= 1, name
        assert rehearsal.packaged[name] == rehearsal.direct[name], name
    assert 0 < rehearsal.direct[NAMES.get(board, ("AP",))[0]] < 1
    assert rehearsal.differences == {} and rehearsal.reason is None
    assert rehearsal.submission.path.is_file() and BOARDS[board].rehearsal in rehearsal.submission.path.name


def pycocotools_scores(truth, results, task):
    api = COCO(str(truth))
    evaluation = COCOeval(api, api.loadRes(results), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_scores_are_those_of_pycocotools(tmp_path, capsys):
    case = MAKERS["coco-test-dev"](tmp_path)
    rehearsal = rehearse(case.request("coco-test-dev"), case.out)
    stats = pycocotools_scores(case.images, json.loads(case.predictions.read_text()), "bbox")
    assert [rehearsal.packaged[name] for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")] == pytest.approx(
        stats[[0, 1, 2, 6, 7, 8]], abs=1e-12
    )


def crowd(case, count=6, seed=0):
    """Many more detections an image, some of equal score, in any order."""
    rng = np.random.default_rng(seed)

    def make(found):
        more = []
        for image_id, size in SIZES.items():
            for _ in range(count):
                corner = rng.integers(0, [size[0] - 12, size[1] - 12])
                box = [*(corner + rng.random(2)).tolist(), *rng.uniform(4, 11, 2).tolist()]
                score = float(np.float32(np.round(rng.random(), 1)))
                category = int(rng.choice([1, 3]))
                more.append({"image_id": image_id, "bbox": box, "score": score, "category_id": category, "extra": 1})
        return [(found + more)[i] for i in rng.permutation(len(found) + len(more))]

    return case.rewrite(make)


@pytest.mark.parametrize("seed", range(3))
def test_mends_change_no_score(seed, tmp_path):
    case = crowd(MAKERS["coco-test-dev"](tmp_path), 30, seed)
    rehearsal = rehearse(case.request("coco-test-dev"), case.out)
    assert len(rehearsal.submission.content.mends) == 3
    assert 0 < rehearsal.direct["AP"] < 1 and rehearsal.differences == {}


def test_masks_of_mmdet_are_scored_by_their_own_size(tmp_path):
    """With its box, a mask that fills little of it would count as large; without, package and file agree."""
    case = MAKERS["coco-val"](tmp_path)
    case.change(lambda content: [found.update(bbox=[0, 0, 4000, 4000]) for found in content])
    rehearsal = rehearse(case.request("coco-val"), case.out)
    assert rehearsal.differences == {} and rehearsal.packaged["APs"] > 0


@pytest.mark.parametrize(("board", "limits"), [("coco-test-dev", {"per_image": 4}), ("coco-val", {"per_image": 2})])
def test_a_cut_is_the_reason_of_a_difference(board, limits, tmp_path):
    case = MAKERS[board](tmp_path)
    if board == "coco-test-dev":
        crowd(case, 12)
    # What is found of the third class is nowhere: the best two of an image are the right ones.
    request = case.request(board)
    request = replace(request, board=replace(request.board, **limits))
    rehearsal = rehearse(request, case.out)
    assert (
        rehearsal.reason == f"{board} counts the best {limits['per_image']} detections an image alone, pycocotools more"
    )
    found = json.loads(case.predictions.read_text())
    kept = []
    for image_id in SIZES:
        own = [entry for entry in found if entry["image_id"] == image_id]
        kept += sorted(own, key=lambda entry: -entry["score"])[: limits["per_image"]]
    if board == "coco-test-dev":
        stats = pycocotools_scores(case.images, kept, "bbox")
        assert rehearsal.packaged["AP"] == pytest.approx(stats[0], abs=1e-12)
        assert rehearsal.differences["AP"][0] != rehearsal.differences["AP"][1]
    else:
        assert rehearsal.packaged["AP"] == rehearsal.direct["AP"]


def test_lvis_cuts_by_itself_so_that_nothing_changes(tmp_path):
    """The 300 of an image are what lvis-api keeps too."""
    case = MAKERS["lvis"](tmp_path)
    found = json.loads(case.predictions.read_text())
    worst = {**found[2], "score": 0.01}
    case.rewrite(lambda content: [*content, *({**worst, "score": 0.01 + i * 1e-5} for i in range(400))])
    rehearsal = rehearse(case.request("lvis"), case.out)
    assert rehearsal.submission.content.cut
    assert {name for name in rehearsal.differences if name in ("AP", "AP50", "AR", "APf")} == set()


def test_rounding_is_the_reason_of_a_difference(tmp_path):
    case = crowd(MAKERS["coco-test-dev"](tmp_path), 30)
    rehearsal = rehearse(case.request("coco-test-dev", decimals=0), case.out)
    assert rehearsal.reason == "boxes were rounded to 0 digits" and rehearsal.differences
