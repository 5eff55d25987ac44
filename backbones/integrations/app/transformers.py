"""Folders of transformers for the page: models with a head of its own, and backbones for their maps alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.integrations.app.predictions import Opened, Prediction, best_objects, labels_of
from backbones.integrations.frameworks import needed
from backbones.integrations.networks import MEAN, STD
from backbones.integrations.whole_models import model_of_folder
from defocus_eval.drawing import box_of_mask


def open_folder(folder: Path, device: str = "cpu") -> Opened:
    """The model in a folder of `save_pretrained`, with its image processor.

    Raises:
        ValueError: The folder has no model, no image processor, or a model with a head that is none of `_READERS`.
    """
    with needed("transformers"):
        from transformers import AutoImageProcessor
    model = model_of_folder(folder).to(device)
    if not (folder / "preprocessor_config.json").is_file():
        raise ValueError(
            f"{folder} has no image processor (preprocessor_config.json): save that of the training into it"
        )
    processor = AutoImageProcessor.from_pretrained(folder)
    kind = type(model).__name__
    reader = next((read for ending, read in _READERS.items() if kind.endswith(ending)), None)
    if reader is None:
        raise ValueError(f"{folder} holds a {kind}; what is shown here ends in {', '.join(_READERS)}")
    mean, std = (
        [255 * part for part in own] if own and processor.do_normalize else list(other)
        for own, other in ((processor.image_mean, MEAN), (processor.image_std, STD))
    )
    return Opened(model, partial(_predict, model, processor, reader), mean, std)


@torch.no_grad()
def _predict(model: nn.Module, processor: Any, read: Callable, pixels: np.ndarray) -> Prediction:
    device = next(model.parameters()).device
    inputs = processor(images=[pixels], return_tensors="pt").to(device)
    labels = model.config.id2label or {}
    names = [labels.get(i, str(i)) for i in range(len(labels))]
    found = read(model(**inputs), processor, pixels.shape[:2])
    return Prediction(names, **found)


def _boxes(outputs: Any, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=torch.tensor([size]))
    boxes = found["boxes"].float().cpu().clamp(min=0)
    boxes = boxes.minimum(boxes.new_tensor([size[1], size[0], size[1], size[0]]))
    scores, labels = (found[name].float().cpu().numpy() for name in ("scores", "labels"))
    return {"objects": best_objects(boxes.numpy(), scores, labels)}


def _segments(outputs: Any, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    # A label that does not count is told to the processors of label maps alone.
    if processor.ignore_index is not None:
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
        weights = torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.sigmoid())
        return _pixels(weights / weights.sum(1, keepdim=True).clamp(min=1e-12), size)
    (found,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[size], return_binary_maps=True
    )
    segments = [
        (segment, found["segmentation"][segment["id"]].cpu().numpy().astype(np.uint8))
        for segment in found["segments_info"]
    ]
    segments = [(segment, mask) for segment, mask in segments if mask.any()]
    if not segments:
        return {"objects": ()}
    masks = np.stack([mask for _, mask in segments])
    boxes = np.stack([box_of_mask(mask) for mask in masks])
    boxes[:, 2:] += boxes[:, :2]
    scores, labels = (np.array([segment[name] for segment, _ in segments]) for name in ("score", "label_id"))
    return {"objects": best_objects(boxes, scores, labels, masks)}


def _semantic(outputs: Any, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    return _pixels(outputs.logits, size, as_logits=True)


def _pixels(values: Tensor, size: tuple[int, int], as_logits: bool = False) -> dict[str, Any]:
    """Labels and their probabilities from `(1, classes, h, w)` of another resolution."""
    values = F.interpolate(values.float(), size, mode="bilinear", align_corners=False)
    return labels_of((values.softmax(1) if as_logits else values)[0])


def _classes(outputs: Any, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    return {"classes": outputs.logits[0].float().softmax(-1).cpu().numpy()}


def _nothing(outputs: Any, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    return {}


# Ending of a model's class to what reads its outputs.
_READERS: dict[str, Callable[[Any, Any, tuple[int, int]], dict[str, Any]]] = {
    "ForObjectDetection": _boxes,
    "ForUniversalSegmentation": _segments,
    "ForSemanticSegmentation": _semantic,
    "ForImageClassification": _classes,
    "Backbone": _nothing,
    "Model": _nothing,
}
