"""Average precision of boxes, masks and their boundaries by COCO's and LVIS' protocols.

The scores are those of hotcoco, a library that computes what pycocotools and lvis-api compute, fast. Boundary AP,
which it lacks, follows from the matches kept here. Those matches also give intervals, scores of classes and images,
and curves; and they must give hotcoco's scores.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property

import hotcoco
import numpy as np

from defocus_eval.formats import Truth
from defocus_eval.progress import start_progress
from defocus_eval.scores.accumulate import Accumulated, accumulate, average_of_images, recall_of
from defocus_eval.scores.columns import Columns, best_of_each
from defocus_eval.scores.matching import Matches, match
from defocus_eval.scores.metrics import COCO_MOST, LVIS_MOST, Metric, coco_metrics, lvis_metrics

# Largest difference between two ways to one score that rounding explains.
ROUNDING = 1e-9
ANNOTATION_KEYS = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


class Detection:
    """One task of one set of predictions, matched.

    Args:
        truth: Instances, or those of LVIS.
        entries: COCO results of boxes or of masks.
        task: "bbox", "segm" or "boundary".
        most: Detections that count, the best first: of an image and class in COCO (matched are as many, even where
            the official numbers count fewer), of an image in LVIS. None for the protocol's own.
        most_of_class: Detections of a class that count instead of those of an image, in LVIS.

    Raises:
        InputError: Masks are scored and the ground truth has none.
    """

    notes = ()

    def __init__(
        self, truth: Truth, entries: list[dict], task: str, most: int | None = None, most_of_class: int | None = None
    ) -> None:
        self.truth, self.task, self.lvis = truth, task, truth.kind == "lvis"
        self.columns = Columns(truth, task)
        self._accumulated: dict[tuple, tuple] = {}
        records = {record["id"]: record for record in truth.data["categories"]}
        category_ids = self.columns.category_ids
        self.frequencies = np.array([records[category_id].get("frequency", "") for category_id in category_ids])
        objects, shapes = self.columns.of_truth()
        found, found_shapes = self.columns.of_results(entries)
        overlaps = self.columns.overlaps(found_shapes, shapes, objects.crowd)
        # Rows of the entries that are matched, for those whose cut is not that of an image and class.
        rows = np.arange(len(entries))
        if self.lvis:
            groups = found.category if most_of_class else found.image
            count = most_of_class or most or LVIS_MOST
            looked_for, partly = self.columns.federation(found)
            found = replace(found, ignored=partly)
            rows = best_of_each(groups, found.score, count)
            rows = rows[looked_for[rows]]
        self.entries = entries if len(rows) == len(entries) else [entries[row] for row in rows]
        self.source = rows
        shape = (len(self.columns.image_ids), len(category_ids))
        with start_progress(len(objects), f"matching {task}", "object") as bar:

            def counted(chosen: np.ndarray, targets: np.ndarray) -> np.ndarray:
                bar.update(len(targets))
                return overlaps(rows[chosen], targets)

            most = None if self.lvis else most or COCO_MOST[-1]
            lost = np.array([record["id"] == 0 for record in truth.data["annotations"]], bool)
            self.matches: Matches = match(objects, found.take(rows), counted, *shape, most, lost)
        self.as_library = task != "boundary" and not lost.any()

    @property
    def most(self) -> int | None:
        """Detections of an image and class that the official numbers count; None for all that were matched."""
        return None if self.lvis else COCO_MOST[-1]

    @property
    def images(self) -> int:
        """Number of images."""
        return self.matches.images

    @property
    def metrics(self) -> dict[str, Metric]:
        """The official numbers of the protocol."""
        return lvis_metrics() if self.lvis else coco_metrics()

    def scores(self, weights: np.ndarray | None = None, metrics: dict[str, Metric] | None = None) -> dict:
        """Numbers by name, each `(samples,)`; NaN where there is nothing to find.

        Args:
            weights: Of the images, `(samples, images)`; without them the set as it is, one sample.
            metrics: What to compute, the official numbers by default.
        """
        metrics = metrics or self.metrics
        scores: dict[str, np.ndarray] = {}
        for most in dict.fromkeys(metric.most for metric in metrics.values()):
            group = {name: metric for name, metric in metrics.items() if metric.most == most}
            if all((metric.kind, metric.area) == ("recall", "all") for metric in group.values()):
                recall = recall_of(self.matches, self._weights(weights), most)
                accumulated = Accumulated(recall[:0], recall[None])
            else:
                accumulated = self.accumulated(weights, most)
            scores |= {name: metric.of(accumulated, self.frequencies) for name, metric in group.items()}
        return {name: scores[name] for name in metrics}

    def accumulated(self, weights: np.ndarray | None, most: int | None) -> Accumulated:
        """Precision and recall of the classes, computed once for the same weights."""
        # A limit that no image reaches is none.
        if most is not None and not (self.matches.rank >= most).any():
            most = None
        key = (id(weights), most)
        if key not in self._accumulated:
            # The weights are kept, too: no others can have their id.
            self._accumulated[key] = weights, accumulate(self.matches, self._weights(weights), most)
        return self._accumulated[key][1]

    def _weights(self, weights: np.ndarray | None) -> np.ndarray:
        return np.ones((1, self.matches.images), np.uint8) if weights is None else weights

    def own_scores(self, metrics: dict[str, Metric] | None = None) -> dict[str, float]:
        """Numbers that follow from the matches, -1 where there is nothing to find."""
        scores = {name: float(values[0]) for name, values in self.scores(metrics=metrics).items()}
        return {name: -1.0 if np.isnan(value) else value for name, value in scores.items()}

    def official(self) -> dict[str, float]:
        """The official numbers; -1 where there is nothing to find, as pycocotools has it."""
        own = self.own_scores()
        # The library has no boundaries, and finds objects of id 0, which pycocotools and lvis-api do not.
        if not self.as_library:
            return own
        arrays = self.evaluator.eval
        assert arrays is not None, "the library has accumulated nothing"
        scores = {name: self._read(arrays[metric.kind], metric) for name, metric in self.metrics.items()}
        apart = [name for name, value in scores.items() if abs(value - own[name]) > ROUNDING]
        assert not apart, f"two ways to {apart[0]} of {self.task} disagree: {scores[apart[0]]} and {own[apart[0]]}"
        return scores

    def _read(self, values: np.ndarray, metric: Metric) -> float:
        """A number from an array of the library."""
        parameters = self.evaluator.params
        values = values[..., list(parameters.area_rng_lbl).index(metric.area), :]
        values = values[..., 0 if metric.most is None else list(parameters.max_dets).index(metric.most)]
        if metric.threshold is not None:
            values = values[metric.threshold]
        if metric.frequency is not None:
            values = values[..., self.frequencies == metric.frequency]
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else -1.0

    def scores_with_areas(self, areas: np.ndarray) -> dict[str, float]:
        """The official numbers, were each detection of the area given for it, `(entries given,)`; matches stay."""
        found = self.matches.found
        kept = self.source[self.matches.source]
        other = copy(self)
        other._accumulated = {}
        other.matches = replace(self.matches, found=replace(found, area=areas[kept]))
        return other.own_scores()

    @cached_property
    def evaluator(self) -> hotcoco.COCOeval:
        """The library's evaluation of the same, accumulated."""
        annotations = [
            {"id": number, **{key: record[key] for key in ANNOTATION_KEYS if key in record}}
            for number, record in enumerate(self.truth.data["annotations"], 1)
        ]
        truth = hotcoco.COCO({**self.truth.data, "annotations": annotations})
        found = hotcoco.LVISResults(truth, self.entries, max_dets=-1) if self.lvis else truth.load_res(self.entries)
        evaluator = hotcoco.COCOeval(truth, found, self.task, lvis_style=self.lvis)
        if self.lvis:
            # Unlike lvis-api, hotcoco 1.3 would cut to 300 of an image and class, where AP-fixed has no limit.
            evaluator.params.max_dets = [max(LVIS_MOST, len(self.entries))]
        evaluator.evaluate()
        evaluator.accumulate()
        return evaluator

    @cached_property
    def of_images(self) -> dict[int, float]:
        """Average precision of each image taken by itself, by image id; only images with objects that count."""
        averages = average_of_images(self.matches, self.most)
        return {
            image_id: float(average)
            for image_id, average in zip(self.columns.image_ids, averages)
            if not np.isnan(average)
        }
