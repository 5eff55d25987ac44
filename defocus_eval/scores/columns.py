"""Annotations and results as columns of numbers, boxes and masks."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from defocus_eval.errors import InputError
from defocus_eval.formats import Truth
from defocus_eval.formats.masks import run_length_code
from defocus_eval.scores.boundary import boundary_iou
from defocus_eval.scores.matching import THRESHOLDS, Objects, Overlaps

# Boxes, `(n, 4)`, or run-length codes.
Shapes: TypeAlias = "np.ndarray | list[dict]"


class Columns:
    """Rows of images and classes, in the order of their ids.

    Args:
        truth: Instances, or those of LVIS.
        task: "bbox", "segm" or "boundary".
    """

    def __init__(self, truth: Truth, task: str) -> None:
        self.truth, self.task = truth, task
        self.image_ids, self.category_ids = sorted(truth.images), sorted(truth.categories)
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        self._column = {category_id: column for column, category_id in enumerate(self.category_ids)}

    def of_truth(self) -> tuple[Objects, Shapes]:
        """Objects, and their boxes `(n, 4)` or masks.

        Raises:
            InputError: An annotation has no mask, where masks are scored.
        """
        records = self.truth.data["annotations"]
        if self.task != "bbox":
            number = next((n for n, record in enumerate(records, 1) if not record.get("segmentation")), None)
            if number is not None:
                raise InputError(
                    f"{self.truth.path}, annotation {number} has no segmentation, so masks cannot be scored; "
                    "add it, or score boxes alone (--tasks bbox)"
                )
        # A crowd exists in COCO alone, an object to ignore in LVIS alone.
        lvis = self.truth.kind == "lvis"
        crowd = np.array([not lvis and bool(record["iscrowd"]) for record in records], bool)
        ignored = np.array([lvis and bool(record.get("ignore")) for record in records], bool) | crowd
        area = np.array([record["area"] for record in records], np.float64)
        return Objects(*self._where(records), area, np.zeros(len(records)), crowd, ignored), self._shapes(records)

    def of_results(self, entries: list[dict]) -> tuple[Objects, Shapes]:
        """Detections, and their boxes `(n, 4)` or masks."""
        shapes = self._shapes(entries)
        if isinstance(shapes, np.ndarray):
            area = shapes[:, 2] * shapes[:, 3]
        else:
            # One by one: pycocotools 2.0.11 takes no more than 255 at once.
            area = np.array([coco_mask.area(mask) for mask in shapes], np.float64)
        score = np.array([entry["score"] for entry in entries], np.float64)
        none = np.zeros(len(entries), bool)
        return Objects(*self._where(entries), area, score, none, none), shapes

    def _where(self, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
        image = np.array([self._row[record["image_id"]] for record in records], np.int64)
        return image, np.array([self._column[record["category_id"]] for record in records], np.int64)

    def _shapes(self, records: list[dict]) -> Shapes:
        if self.task == "bbox":
            return np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
        images = [self.truth.images[record["image_id"]] for record in records]
        return [
            run_length_code(record["segmentation"], image["height"], image["width"])
            for record, image in zip(records, images)
        ]

    def overlaps(self, found: Shapes, objects: Shapes, crowd: np.ndarray) -> Overlaps:
        """IoU as the task measures it, of whatever rows are asked for.

        Args:
            found: Boxes `(n, 4)` or masks of the detections.
            objects: The same of the objects.
            crowd: Which objects are crowds, `(objects,)` bool.

        Returns:
            A function of rows of detections and rows of objects to `(rows, targets)` float64.
        """
        if isinstance(found, np.ndarray) and isinstance(objects, np.ndarray):
            boxes, true_boxes = found, objects
            return lambda rows, targets: coco_mask.iou(boxes[rows], true_boxes[targets], crowd[targets])

        def masks(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
            first, second = [found[row] for row in rows], [objects[target] for target in targets]
            if self.task == "segm":
                return coco_mask.iou(first, second, crowd[targets])
            return boundary_iou(first, second, crowd[targets], THRESHOLDS[0])

        return masks

    def federation(self, found: Objects) -> tuple[np.ndarray, np.ndarray]:
        """LVIS' rule for detections, by what was looked for in their image.

        Returns:
            Which are of a class that was looked for, and which of one that was not looked for everywhere; both `(n,)`
            bool.
        """
        looked_for, partly = (np.zeros((len(self.image_ids), len(self.category_ids)), bool) for _ in range(2))
        for table, key in ((looked_for, "neg_category_ids"), (partly, "not_exhaustive_category_ids")):
            for row, image_id in enumerate(self.image_ids):
                table[row, [self._column[category_id] for category_id in self.truth.images[image_id][key]]] = True
        image, category = self._where(self.truth.data["annotations"])
        looked_for[image, category] = True
        return looked_for[found.image, found.category], partly[found.image, found.category]


def best_of_each(groups: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Rows of the ``most`` best scores of each group, in their order; ties go to the earlier."""
    order = np.lexsort((-scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return np.sort(order[place < most])
