"""A detector of random weights in a folder, as transformers saves it."""

from pathlib import Path

import torch

from backbones.integrations.transformers_training import heads
from tests.integrations.transformers_training.tiny import BACKBONE, REAL_TIME


def save_detector(folder: Path, size: tuple[int, int] = (64, 96)) -> torch.nn.Module:
    """An RT-DETR v2 of two classes that takes images of ``size`` and is sure of each of its 8 boxes."""
    torch.manual_seed(0)
    model = heads.build_model("rt_detr_v2", "boxes", BACKBONE, REAL_TIME, ["red", "blue"]).eval()
    for head in model.class_embed:
        torch.nn.init.ones_(head.bias)
    model.save_pretrained(folder)
    heads.build_processor("rt_detr_v2", "boxes", size, {}, 255).save_pretrained(folder)
    return model
