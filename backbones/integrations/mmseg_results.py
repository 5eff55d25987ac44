"""A metric for mmseg whose PNGs hold the labels of the board that they go to.

    test_evaluator = dict(type='backbones.integrations.mmseg_results.BoardLabelMetric', output_dir='work_dirs/run/maps')

A config that names it so needs no import; ``tools/test.py --out`` gives the folder. The PNGs are what
`defocus evaluate` scores and `defocus submit` packs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from PIL import Image

from defocus_eval.files import replacing
from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID, LABELS

_CITYSCAPES = [label.name for label in LABELS if label.counts]


@METRICS.register_module()
class BoardLabelMetric(IoUMetric):
    """mmseg's `IoUMetric`, which scores what training numbers, and writes what the board numbers.

    `IoUMetric` adds the 1 that ADE20K needs only where a sample says `reduce_zero_label`, which a pipeline may drop:
    here the data set says it. Of a data set with Cityscapes' 19 classes, label ids are written, as its board and
    `CityscapesMetric` have them, and the score is the class IoU that the board shows. All arguments are those of
    `IoUMetric`; with ``output_dir`` there is a PNG for each image, named like it.

    Raises:
        ValueError: Neither data set nor sample say whether label 0 was left out of training.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Scores a batch and writes its maps."""
        folder, self.output_dir = self.output_dir, None
        try:
            super().process(data_batch, data_samples)
        finally:
            self.output_dir = folder
        if folder is None:
            return
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"].squeeze().cpu().numpy()
            with replacing(Path(folder) / f"{Path(sample['img_path']).stem}.png") as temporary:
                Image.fromarray(self._to_board(labels, sample).astype(np.uint8)).save(temporary, "PNG")

    def _to_board(self, labels: np.ndarray, sample: dict) -> np.ndarray:
        if list(self.dataset_meta["classes"]) == _CITYSCAPES:
            return LABEL_OF_TRAIN_ID[labels]
        reduced = self.dataset_meta.get("reduce_zero_label", sample.get("reduce_zero_label"))
        if reduced is None:
            raise ValueError(
                "neither the data set nor its samples say reduce_zero_label, so it is open whether label 0 is the "
                "first class or none; give the data set reduce_zero_label=True or False"
            )
        return labels + 1 if reduced else labels
