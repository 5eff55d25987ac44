"""Detectron2's lazy configs with their checkpoints for the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones.checkpoints import read_checkpoint, weights_of
from backbones.integrations.app.predictions import Opened, Prediction, best_objects, labels_of, normalisation_of
from backbones.integrations.frameworks import needed
from backbones.integrations.whole_models import load_whole

with needed("detectron2"):
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.transforms import AugInput, AugmentationList
    from omegaconf import OmegaConf

logger = logging.getLogger("backbones")


def open_lazy_config(config: str, checkpoint: str, device: str = "cpu") -> Opened:
    """The model of a lazy config.

    Raises:
        ValueError: The config has no model.
        CheckpointError: The checkpoint cannot be read or is not of this config.
    """
    told = LazyConfig.load(config)
    if "model" not in told:
        raise ValueError(f"{config} has no model: give the config of the training")
    if "device" in told.model:
        told.model.device = device
    model = instantiate(told.model).eval()
    load_whole(model, weights_of(read_checkpoint(checkpoint))[0], checkpoint)
    model.to(device)
    mapper = OmegaConf.select(told, "dataloader.test.mapper")
    red_first = _image_format(model, mapper) == "RGB"
    augmentations = AugmentationList([instantiate(entry) for entry in (mapper or {}).get("augmentations", [])])
    predict = partial(_predict, model, augmentations, _class_names(told), red_first)
    return Opened(model, predict, *normalisation_of(model, "pixel_mean", "pixel_std"), red_first)


def _image_format(model: nn.Module, mapper: Any) -> str:
    """Order of the channels that a model takes: what its mapper gives it."""
    return (mapper or {}).get("image_format") or getattr(model, "input_format", None) or "BGR"


def _class_names(config: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Names of things and of stuff of the test set, as far as its files are here."""
    names = OmegaConf.select(config, "dataloader.test.dataset.names")
    try:
        # A name, or a call that registers a data set and returns its name.
        names = instantiate(names)
        name = names if isinstance(names, str) else names[0]
        if not MetadataCatalog.get(name).get("thing_classes"):
            DatasetCatalog.get(name)
    # What reads a data set raises anything where it is not there; then classes go by their numbers.
    except Exception as error:
        logger.warning("Classes are shown as numbers: the test set of the config cannot be read (%s)", error)
        return (), ()
    metadata = MetadataCatalog.get(name)
    return metadata.get("thing_classes", ()), metadata.get("stuff_classes", ())


@torch.no_grad()
def _predict(
    model: nn.Module,
    augmentations: AugmentationList,
    names: tuple[Sequence[str], Sequence[str]],
    red_first: bool,
    pixels: np.ndarray,
) -> Prediction:
    given = AugInput(np.ascontiguousarray(pixels if red_first else pixels[..., ::-1]))
    augmentations(given)
    image = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
    height, width = pixels.shape[:2]
    (found,) = model([{"image": image, "height": height, "width": width}])
    objects, semantic = None, {}
    if "instances" in found:
        instances = found["instances"].to("cpu")
        masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
        objects = best_objects(
            instances.pred_boxes.tensor.numpy(), instances.scores.numpy(), instances.pred_classes.numpy(), masks
        )
    if "sem_seg" in found:
        semantic = labels_of(found["sem_seg"].float().softmax(0))
    things, stuff = names
    return Prediction(things, objects, label_names=stuff, **semantic)
