"""Evaluators for Detectron2 that keep what its own throw away: panoptic PNGs and Cityscapes' label maps and masks.

    from backbones.integrations.detectron2.results import PanopticResults

    dataloader.evaluator = L(PanopticResults)(dataset_name="${..test.dataset.names}", output_dir="work_dirs/panoptic")

Each writes files that `defocus evaluate` scores and `defocus submit` packs, needs neither panopticapi nor
cityscapesScripts, and returns scores where the data set has ground truth. With several processes all write into
``output_dir``, which must be one folder for all of them. A sibling of Detectron2's own, in a list, changes nothing.
"""

import itertools
import json
import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from defocus_eval.evaluate import evaluate as score
from defocus_eval.files import replacing, write_text
from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID, LABELS, frame_of
from defocus_eval.scores.cityscapes_instances import score_instances

logger = logging.getLogger("detectron2.defocus")


class _Results(DatasetEvaluator):
    """What the evaluators share: a folder for the files, and the data set's description."""

    def __init__(self, dataset_name: str, output_dir: str):
        self._metadata = MetadataCatalog.get(dataset_name)
        self._folder = Path(output_dir)
        self._folder.mkdir(parents=True, exist_ok=True)

    def reset(self) -> None:
        """Forgets what was seen; files of the same images are written over."""

    def _save(self, array: np.ndarray, name: str) -> None:
        """Writes a PNG, whole or not at all."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            Image.fromarray(array).save(temporary, "PNG")


class PanopticResults(_Results):
    """COCO's panoptic format: `panoptic.json` and `panoptic/<image>.png` in ``output_dir``.

    Args:
        dataset_name: A data set with panoptic metadata.
        output_dir: Folder for the files.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        super().__init__(dataset_name, output_dir)
        self._things = {new: old for old, new in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        self._stuff = {new: old for old, new in self._metadata.stuff_dataset_id_to_contiguous_id.items()}

    def reset(self):
        """Forgets the images seen."""
        self._annotations = []

    def process(self, inputs, outputs):
        """Writes a PNG for each image, ids as red + 256·green + 256²·blue."""
        for sample, output in zip(inputs, outputs):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            if segments is None:
                ids, segments = self._split(ids)
            name = f"{Path(sample['file_name']).stem}.png"
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            self._save(colours, f"panoptic/{name}")
            segments = [{"id": int(s["id"]), "category_id": self._category(s)} for s in segments]
            self._annotations.append({"image_id": sample["image_id"], "file_name": name, "segments_info": segments})

    def _split(self, ids: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        """Ids and segments of a map of category · label_divisor + number, -1 where nothing is."""
        segments = []
        for value in np.unique(ids[ids >= 0]).tolist():
            category = value // self._metadata.label_divisor
            # 0 is what belongs to no segment.
            segments.append({"id": value + 1, "category_id": category, "isthing": category in self._things})
        return ids + 1, segments

    def _category(self, segment: dict) -> int:
        """The data set's id of a segment's category, which the model may number from 0, things and stuff apart."""
        if "isthing" not in segment:
            return int(segment["category_id"])
        return (self._things if segment["isthing"] else self._stuff)[int(segment["category_id"])]

    def evaluate(self):
        """Writes the JSON; returns `PQ`, `SQ` and `RQ` of all, things and stuff in hundredths, as Detectron2 does."""
        comm.synchronize()
        annotations = list(itertools.chain(*comm.gather(self._annotations)))
        if not comm.is_main_process():
            return None
        path = self._folder / "panoptic.json"
        write_text(path, json.dumps({"annotations": annotations}))
        logger.info("%s: panoptic predictions of %d images", path, len(annotations))
        truth = getattr(self._metadata, "panoptic_json", None)
        if truth is None or not Path(truth).is_file():
            return OrderedDict()
        scores = score(path, truth, annotations_folder=self._metadata.panoptic_root)["panoptic"]
        return OrderedDict(panoptic_seg={name: 100 * value for name, value in scores.items() if name in _PANOPTIC})


_PANOPTIC = [f"{score}{part}" for score in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st")]


class CityscapesSemanticResults(_Results):
    """Label maps as Cityscapes takes them: `<city>_<sequence>_<frame>.png` of label ids in ``output_dir``.

    Args:
        dataset_name: A data set whose classes are the 19 of Cityscapes, in the order of the train ids.
        output_dir: Folder for the files.
    """

    def process(self, inputs, outputs):
        """Writes a PNG for each image, label ids as bytes."""
        for sample, output in zip(inputs, outputs):
            labels = output["sem_seg"].argmax(0).cpu().numpy()
            self._save(LABEL_OF_TRAIN_ID[labels], f"{_frame(sample)}.png")

    def evaluate(self):
        """Returns the class IoU that the board shows, `IoU`, in hundredths."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        logger.info("%s: label maps of Cityscapes", self._folder)
        truth = getattr(self._metadata, "gt_dir", None)
        if truth is None or not Path(truth).is_dir():
            return OrderedDict()
        return OrderedDict(sem_seg={"IoU": 100 * score(self._folder, truth)["semantic"]["mIoU"]})


class CityscapesInstanceResults(_Results):
    """Instances as Cityscapes takes them: a text file an image and a PNG a mask in ``output_dir``.

    Args:
        dataset_name: A data set with `thing_classes`, named as Cityscapes names them.
        output_dir: Folder for the files.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        super().__init__(dataset_name, output_dir)
        labels = {label.name: label.id for label in LABELS}
        self._labels = [labels[name] for name in self._metadata.thing_classes]

    def process(self, inputs, outputs):
        """Writes a PNG for each mask, then the text file that names them."""
        for sample, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            lines = []
            for number in range(len(instances)):
                name = f"{_frame(sample)}_{number}.png"
                self._save(instances.pred_masks[number].numpy().astype(bool), name)
                label = self._labels[instances.pred_classes[number]]
                lines.append(f"{name} {label} {instances.scores[number].item()}\n")
            (self._folder / f"{_frame(sample)}.txt").write_text("".join(lines))

    def evaluate(self):
        """Returns `AP` and `AP50` as Cityscapes defines them, in hundredths."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        logger.info("%s: instances of Cityscapes", self._folder)
        truth = getattr(self._metadata, "gt_dir", None)
        if truth is None or not Path(truth).is_dir():
            return OrderedDict()
        scores = score_instances(self._folder, Path(truth))
        return OrderedDict(segm={name: 100 * scores[name] for name in ("AP", "AP50")})


def _frame(sample: dict) -> str:
    stem = Path(sample["file_name"]).stem
    frame = frame_of(stem)
    if frame is None:
        raise ValueError(
            f"{sample['file_name']} is not named <city>_<6 digits>_<6 digits>…, as Cityscapes names images: its board "
            "finds predictions by that"
        )
    return frame
