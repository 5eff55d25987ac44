"""Images with what they show, from COCO's instances or folders of label maps, for a head's image processor."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from backbones.integrations.transformers_training.augmentation import drawn_for
from defocus_eval.drawing import decode_mask

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_REQUIRED = {"images", "annotations", "categories"}


class LabelledImages(Dataset):
    """What the data sets here share: images that are changed by chance, differently in each epoch.

    Attributes:
        names: Of the labels 0, 1, ….
        annotations: Where the ground truth comes from: a file or a folder.
    """

    names: list[str]
    annotations: Path

    def __init__(self, augmentation: v2.Transform | None = None, seed: int = 0):
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0

    def begin_epoch(self, epoch: int) -> None:
        """Says which epoch it is, on which depends what is drawn."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.read(index)
        if self.augmentation is not None:
            with drawn_for(self.seed, self.epoch, index):
                sample = self.augmentation(sample)
        return sample

    def read(self, index: int) -> dict[str, Any]:
        """The image and its annotations as they are in the files.

        Raises:
            FileNotFoundError: There is no such image.
            ValueError: The image is broken, or it and its annotations do not fit each other.
        """
        raise NotImplementedError


class CocoImages(LabelledImages):
    """Images of a file in COCO's instances format. Labels are numbered in the order of its categories.

    Args:
        annotations: The JSON file.
        images: Folder that ``file_name`` starts from; None for that of the file.
        masks: Whether masks are wanted beside boxes.
        training: Leaves out images without an object, as trainers do.
        augmentation: For training.
        seed: Of the augmentation.

    Attributes:
        records: One record of the file for each image.
        category_ids: The file's id of each label.

    Raises:
        ValueError: The file is not in COCO's format, or nothing is left of it.
        FileNotFoundError: An image is not where it should be.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        masks: bool = False,
        training: bool = False,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
    ):
        super().__init__(augmentation, seed)
        self.annotations = Path(annotations)
        self.folder = self.annotations.parent if images is None else Path(images)
        self.masks = masks
        content = _read_json(self.annotations)
        self.category_ids = [category["id"] for category in content["categories"]]
        self.names = [category["name"] for category in content["categories"]]
        if not self.names:
            raise ValueError(f"{self.annotations} lists no categories")
        self._objects = self._by_image(content["annotations"])
        self.records = [r for r in content["images"] if not training or self._objects[r["id"]]]
        if not self.records:
            raise ValueError(f"{self.annotations} has no image{' with an object' if training else ''}")
        first = self.folder / self.records[0]["file_name"]
        if not first.is_file():
            raise FileNotFoundError(
                f"{first} does not exist: give the folder that the file names of {self.annotations} start from"
            )

    def _by_image(self, annotations: list[dict]) -> dict[int, list[dict]]:
        """Objects by image, with labels for category ids; crowds, which nothing is learned from, are left out."""
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        objects = defaultdict(list)
        for annotation in annotations:
            if annotation.get("iscrowd"):
                continue
            if annotation["category_id"] not in labels:
                raise ValueError(
                    f"{self.annotations}: annotation {annotation.get('id')} is of category "
                    f"{annotation['category_id']}, which is not among its categories"
                )
            if self.masks and not annotation.get("segmentation"):
                raise ValueError(
                    f"{self.annotations}: annotation {annotation.get('id')} has no mask; train a head of boxes on it"
                )
            if min(annotation["bbox"][2:]) > 0:
                objects[annotation["image_id"]].append({**annotation, "label": labels[annotation["category_id"]]})
        return objects

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> dict[str, Any]:
        """The sample of an image.

        Returns:
            ``image`` `(3, h, w)` uint8, ``image_id``, ``boxes`` `(n, 4)` float32 as x, y, width, height in pixels,
            ``labels`` `(n,)`, and where they are wanted ``masks`` `(n, h, w)` uint8, 0 or 1.
        """
        record = self.records[index]
        path = self.folder / record["file_name"]
        image = read_image(path)
        height, width = image.shape[-2:]
        if (record.get("height", height), record.get("width", width)) != (height, width):
            raise ValueError(
                f"{path} is {width}×{height} pixels, {self.annotations} says {record['width']}×{record['height']}: "
                "correct the one or the other"
            )
        objects = self._objects[record["id"]]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        sample = {
            "image": image,
            "image_id": record["id"],
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=(height, width)),
            "labels": torch.tensor([o["label"] for o in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = [decode_mask(o["segmentation"], height, width) for o in objects]
            stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
            sample["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        return sample


class LabelMapImages(LabelledImages):
    """Images and label maps of one byte a pixel, in two folders, by equal file names less their suffix.

    Args:
        annotations: Folder of the label maps, PNGs.
        images: Folder of the images.
        names: Of the labels 0, 1, …; None counts them in the maps and calls them by their number.
        ignore_label: The label that nothing is learned from.
        augmentation: For training.
        seed: Of the augmentation.

    Attributes:
        pairs: (image, label map) of each sample.

    Raises:
        ValueError: The folders do not belong together, or maps hold labels that have no name.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        names: Sequence[str] | None = None,
        ignore_label: int = 255,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
    ):
        super().__init__(augmentation, seed)
        self.annotations, self.folder, self.ignore_label = Path(annotations), Path(images), ignore_label
        maps = {path.relative_to(self.annotations).with_suffix(""): path for path in self.annotations.rglob("*.png")}
        found = {
            path.relative_to(self.folder).with_suffix(""): path
            for path in self.folder.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        both = sorted(maps.keys() & found.keys())
        if not both:
            raise ValueError(
                f"no label map (*.png) of {self.annotations} has the name of an image in {self.folder}: a map is "
                "called like its image, less the suffix"
            )
        self.pairs = [(found[name], maps[name]) for name in both]
        self.names = list(names) if names else [str(label) for label in range(self._count_labels())]

    def _count_labels(self) -> int:
        return 1 + max(int(labels[labels != self.ignore_label].max(initial=0)) for labels in map(self._map, self.pairs))

    def _map(self, pair: tuple[Path, Path]) -> np.ndarray:
        labels = np.asarray(Image.open(pair[1]))
        if labels.ndim != 2:
            raise ValueError(f"{pair[1]} has {labels.shape[-1]} channels: a label map has one, with a label a pixel")
        return labels

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> dict[str, Any]:
        """The sample of an image: ``image`` `(3, h, w)` uint8 and ``map`` `(h, w)` uint8."""
        path, map_path = self.pairs[index]
        image, labels = read_image(path), self._map(self.pairs[index])
        if image.shape[-2:] != labels.shape:
            (h, w), (image_h, image_w) = labels.shape, image.shape[-2:]
            raise ValueError(f"{map_path} is {w}×{h} pixels, its image {path} {image_w}×{image_h}: both must be equal")
        unknown = sorted(set(np.unique(labels).tolist()) - {*range(len(self.names)), self.ignore_label})
        if unknown:
            raise ValueError(
                f"{map_path} holds labels {unknown}, there are names for 0 to {len(self.names) - 1} and "
                f"{self.ignore_label} is ignored: give a name for each label, or the label to ignore"
            )
        return {"image": image, "map": tv_tensors.Mask(torch.from_numpy(labels.copy()))}


def read_image(path: Path) -> tv_tensors.Image:
    """An image file as RGB, `(3, h, w)` uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or broken.
    """
    try:
        with Image.open(path) as file:
            return tv_tensors.Image(pil_to_tensor(file.convert("RGB")))
    except FileNotFoundError:
        raise FileNotFoundError(f"the image {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): replace it, or take it out") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    missing = _REQUIRED - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"{path} is not in COCO's instances format: it lacks {', '.join(sorted(missing))}")
    return content


# ---- Batches


def collate_boxes(processor, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `CocoImages` for the DETR family.

    Args:
        processor: The head's image processor.
        samples: As of `CocoImages.read`.

    Returns:
        What the processor gives: ``pixel_values`` `(b, 3, H, W)` and ``labels``, of each image a dict with the boxes
        as centre x, centre y, width, height in shares of its sides.
    """
    annotations = []
    for sample in samples:
        boxes = sample["boxes"]
        objects = zip(boxes.tolist(), boxes[:, 2:].prod(1).tolist(), sample["labels"].tolist())
        # Augmentation may have moved an object out of the picture.
        kept = [
            {"bbox": box, "area": area, "category_id": label, "iscrowd": 0} for box, area, label in objects if area > 0
        ]
        annotations.append({"image_id": sample["image_id"], "annotations": kept})
    return _plain(processor(images=_images(samples), annotations=annotations, return_tensors="pt"))


def collate_masks(processor, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `CocoImages` with masks for Mask2Former, which reads instances from one map of numbers an image.

    Args:
        processor: The head's image processor.
        samples: As of `CocoImages.read`, with masks.

    Returns:
        What the processor gives: ``pixel_values`` `(b, 3, H, W)`, and of each image ``mask_labels`` `(n, H, W)` and
        ``class_labels`` `(n,)`.
    """
    maps, labels = [], []
    for sample in samples:
        masks = sample["masks"]
        numbers = torch.zeros(masks.shape[-2:], dtype=torch.int32)
        for number, mask in enumerate(masks, 1):
            numbers[torch.as_tensor(mask) == 1] = number
        maps.append(numbers.numpy())
        labels.append(dict(enumerate(sample["labels"].tolist(), 1)))
    return _plain(
        processor(
            images=_images(samples),
            segmentation_maps=maps,
            instance_id_to_semantic_id=labels,
            # Of the map of numbers: what belongs to no instance.
            ignore_index=0,
            return_tensors="pt",
        )
    )


def collate_label_maps(processor, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `LabelMapImages` for heads of semantic segmentation.

    Args:
        processor: The head's image processor.
        samples: As of `LabelMapImages.read`.

    Returns:
        What the processor gives: ``pixel_values`` `(b, 3, H, W)`, and ``labels`` `(b, H, W)` or, for Mask2Former,
        masks and classes of each image.
    """
    maps = [sample["map"].numpy().astype(np.int32) for sample in samples]
    return _plain(processor(images=_images(samples), segmentation_maps=maps, return_tensors="pt"))


def _images(samples: list[dict[str, Any]]) -> list[Tensor]:
    return [sample["image"].as_subclass(Tensor) for sample in samples]


def _plain(batch) -> dict[str, Any]:
    """A processor's output as dicts and tensors, which Trainer moves to its device; lists of equal maps are stacked."""
    plain = dict(batch)
    labels = plain.get("labels")
    if labels is not None and isinstance(labels, list):
        plain["labels"] = torch.stack(labels) if isinstance(labels[0], Tensor) else [dict(label) for label in labels]
    return plain
