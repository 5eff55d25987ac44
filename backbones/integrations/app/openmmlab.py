"""Configs of mmdet and mmseg with their checkpoints for the page, by the frameworks' own test pipelines."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from backbones.integrations.app.predictions import Opened, Prediction, best_objects, labels_of, normalisation_of
from backbones.integrations.frameworks import needed
from backbones.integrations.whole_models import model_of_config


def open_config(config: str, checkpoint: str, device: str = "cpu") -> Opened:
    """The model of a config of mmdet or mmseg.

    Raises:
        ValueError: The config is of neither.
        CheckpointError: The checkpoint cannot be read or is not of this config.
    """
    model, told, classes = model_of_config(config, checkpoint)
    # Where the frameworks' functions look for the test pipeline.
    model.cfg = told
    model.to(device)
    predict = {"mmdet": _detect, "mmseg": _segment}[told.default_scope]
    images = model.data_preprocessor
    mean, std = normalisation_of(images, "mean", "std")
    # mmseg before OneDL's calls it by the second name.
    name = "_channel_conversion" if hasattr(images, "_channel_conversion") else "channel_conversion"
    return Opened(model, partial(predict, model, classes), mean, std, red_first=getattr(images, name))


def _detect(model: nn.Module, classes: tuple[str, ...], pixels: np.ndarray) -> Prediction:
    with needed("mmdet"):
        from mmdet.apis import inference_detector
    # As OpenCV reads files: blue first.
    found = inference_detector(model, np.ascontiguousarray(pixels[..., ::-1]))
    if "pred_instances" not in found:
        raise ValueError(f"{type(model).__name__} gives no boxes or masks of objects, which is what is shown here")
    instances = found.pred_instances.cpu().numpy()
    masks = instances.masks if "masks" in instances else None
    return Prediction(classes, best_objects(instances.bboxes, instances.scores, instances.labels, masks))


def _segment(model: nn.Module, classes: tuple[str, ...], pixels: np.ndarray) -> Prediction:
    with needed("mmseg"):
        from mmseg.apis import inference_model
    found = inference_model(model, np.ascontiguousarray(pixels[..., ::-1]))
    logits = found.seg_logits.data.float()
    # A head with one output says what is not background.
    return Prediction(classes, **labels_of(logits.softmax(0) if len(logits) > 1 else _two_classes(logits)))


def _two_classes(probability: torch.Tensor) -> torch.Tensor:
    return torch.cat((1 - probability, probability))
