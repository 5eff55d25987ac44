"""What a page calls things, and in which order it shows them."""

from __future__ import annotations

TITLES = {
    "bbox": "Boxes",
    "segm": "Masks",
    "boundary": "Boundaries",
    "panoptic": "Panoptic",
    "semantic": "Semantic",
    "instances": "Instances",
}
EXPLANATIONS = {
    "bbox": "Average precision of boxes by COCO's protocol.",
    "segm": "Average precision of masks by COCO's protocol, sizes from the masks.",
    "boundary": "Average precision of masks where the IoU of their boundaries, if smaller, counts.",
    "panoptic": "Panoptic quality: how well segments are outlined (SQ) times how many are recognised (RQ).",
    "semantic": "Intersection over union of the pixels of each class.",
    "instances": "Average precision of masks by Cityscapes' protocol.",
}
# In tiles, in this order, as far as the evaluation has them.
HEADLINES = {
    "panoptic": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "semantic": ("mIoU", "mAcc", "aAcc", "fwIoU", "score", "miIoU"),
    "instances": ("AP", "AP50"),
}
DETECTION_HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR100", "AR@300")
MEANINGS = {
    "AP": "mean of AP at IoU 0.50 to 0.95",
    "AP50": "AP at IoU 0.50",
    "AP75": "AP at IoU 0.75",
    "APs": "AP of objects below 32² pixels",
    "APm": "AP of objects of 32² to 96² pixels",
    "APl": "AP of objects above 96² pixels",
    "APr": "AP of rare classes",
    "APc": "AP of common classes",
    "APf": "AP of frequent classes",
    "AR1": "recall with one detection of an image and class",
    "AR10": "recall with 10 detections of an image and class",
    "AR100": "recall with 100 detections of an image and class",
    "AR@300": "recall with 300 detections of an image",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
    "PQ": "panoptic quality",
    "SQ": "mean IoU of matched segments",
    "RQ": "F1 of segments",
    "PQ_th": "panoptic quality of things",
    "PQ_st": "panoptic quality of stuff",
    "mIoU": "mean IoU of the classes",
    "mAcc": "mean share of a class's pixels that are right",
    "aAcc": "share of all pixels that are right",
    "fwIoU": "mean IoU, classes weighted by their pixels",
    "score": "mean of mIoU and pixel accuracy: ADE20K's rank",
    "miIoU": "mean IoU of classes with instances, each weighted by its size",
}
ERRORS = {
    "classification": "well placed, wrong class",
    "localisation": "right class, IoU between 0.1 and 0.5",
    "both": "wrong class and poorly placed",
    "duplicate": "finds what a better one found",
    "background": "where nothing is",
    "missed": "objects that nothing found",
}
# The number of a class that is compared, and what else its table has: key, heading, whether it is a share.
CLASS_COLUMNS = {
    "detection": (
        ("objects", "objects", False),
        ("AP", "AP", True),
        ("AP50", "AP50", True),
        ("AP75", "AP75", True),
        ("APs", "APs", True),
        ("APm", "APm", True),
        ("APl", "APl", True),
        ("AR", "recall", True),
        ("F1", "best F1", True),
        ("score_of_F1", "at score", True),
    ),
    "panoptic": (
        ("PQ", "PQ", True),
        ("SQ", "SQ", True),
        ("RQ", "RQ", True),
        ("found", "found", False),
        ("false", "false", False),
        ("missed", "missed", False),
    ),
    "semantic": (("pixels", "pixels", False), ("IoU", "IoU", True), ("accuracy", "accuracy", True)),
    "instances": (("AP", "AP", True), ("AP50", "AP50", True)),
}
MAIN = {"panoptic": "PQ", "semantic": "IoU"}
