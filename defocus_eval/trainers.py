"""Why the log of a trainer says other numbers than the official ones, and which it says."""

from __future__ import annotations

from defocus_eval.formats import Predictions
from defocus_eval.scores.detection import Detection
from defocus_eval.scores.metrics import COCO_MOST, MMDET_MOST, coco_metrics
from defocus_eval.scores.semantic import FOUND, HITS, TRUE, Semantic, shares


def of_detection(detection: Detection, predictions: Predictions) -> list[dict]:
    """Other ways in which boxes or masks are scored, each with its `who`, `why` and `scores`."""
    found = []
    if predictions.writer == "mmdet" and not detection.lvis and detection.task != "boundary":
        most = ", ".join(map(str, MMDET_MOST))
        scores = detection.own_scores(coco_metrics(MMDET_MOST))
        beyond = int((detection.matches.rank >= COCO_MOST[-1]).sum())
        why = f"CocoMetric scores at {most} detections of an image and class, COCO at 1, 10, 100: all but AP differ"
        if not beyond:
            why += "; here no image has more than 100 of a class, so only the recalls do"
        found.append({"who": "log of mmdet", "why": why, "scores": scores})
    if predictions.writer == "detectron2" and detection.task != "boundary":
        found.append(
            {
                "who": "log of Detectron2",
                "why": "it scores by the same protocol with its own compiled program; boxes and masks of the file were "
                "told apart here",
                "scores": {},
            }
        )
    if detection.task == "segm" and predictions.box_areas is not None:
        log = " (so does the log of mmdet's LVISMetric)" if detection.lvis else ""
        found.append(
            {
                "who": "the file as it is",
                "why": "its entries of masks hold bbox, from which pycocotools and lvis-api take sizes instead of from "
                f"the masks{log}: scores by size differ",
                "scores": detection.scores_with_areas(predictions.box_areas),
            }
        )
    return found


def of_semantic(semantic: Semantic, predictions: Predictions) -> list[dict]:
    """Other ways in which label maps are scored, each with its `who`, `why` and `scores`."""
    official = semantic.official()
    if semantic.truth.kind == "cityscapes" and predictions.writer == "mmseg":
        names = ("category_mIoU", "category_miIoU")
        return [
            {
                "who": "log of mmseg's CityscapesMetric",
                "why": "averageScoreCategories and averageScoreInstCategories are means over the seven categories; the "
                "board ranks by the mean over the 19 classes",
                "scores": {name: official[name] for name in names if name in official},
            }
        ]
    counts = semantic.counts.sum(0)
    absent = (counts[:, TRUE] == 0) & (counts[:, FOUND] > 0)
    if predictions.writer == "detectron2" and absent.any():
        iou, _ = shares(counts[counts[:, TRUE] > 0])
        return [
            {
                "who": "log of Detectron2",
                "why": f"its mean leaves out the {int(absent.sum())} classes that are predicted but not there; others "
                "count them as 0",
                "scores": {"mIoU": float(iou.mean()), "aAcc": float(counts[:, HITS].sum() / counts[:, TRUE].sum())},
            }
        ]
    return []
