"""Models of transformers to export, from a folder of `save_pretrained`: image to what their heads give."""

from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.export import Exportable, ExportError, patch_of
from backbones.integrations.networks import MEAN, STD
from backbones.integrations.whole_models import model_of_folder

# What of a head's output is exported, in this order; the rest are hidden states and losses.
_OUTPUTS = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
_DETAILS = {
    "pred_boxes": "centre x, centre y, width, height of each query's box, as shares of the image's sides",
    "logits": "of each class; of a detector by query, of a segmentor by pixel",
}


class Outputs(nn.Module):
    """A model of transformers as a function of its images alone.

    Args:
        model: In evaluation.
        names: Of the outputs.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The named outputs for images `(b, 3, H, W)`."""
        found = self.model(pixel_values=images)
        return tuple(found[name] for name in self.names)


def of_model(model: nn.Module, about: str, size: tuple[int, int] | None = None) -> Exportable:
    """A model with its head.

    Args:
        model: Of transformers; what it returns has some of "logits", "pred_boxes", "class_queries_logits",
            "masks_queries_logits".
        about: What it is.
        size: (height, width) of images, to leave it fixed.
    """
    model = model.eval()
    with torch.inference_mode():
        found = model(pixel_values=torch.zeros(1, 3, *(size or (256, 256))))
    names = tuple(name for name in _OUTPUTS if found.get(name) is not None)
    if not names:
        raise ExportError(f"{type(model).__name__} gives none of {', '.join(_OUTPUTS)}: export a model with a head")
    labels = getattr(model.config, "id2label", None) or {}
    return Exportable(
        Outputs(model, names),
        names,
        about,
        patch_of(model),
        MEAN,
        STD,
        size=size,
        classes=tuple(labels[key] for key in sorted(labels)),
        details={name: text for name, text in _DETAILS.items() if name in names},
    )


def of_folder(folder: Path, size: tuple[int, int] | None = None) -> Exportable:
    """The model in a folder of `save_pretrained`, by the class that its configuration names.

    Raises:
        ValueError: The folder has no config, or it names no class of transformers.
        ExportError: The model has no head.
    """
    model = model_of_folder(folder)
    return of_model(model, f"{folder.name}: {type(model).__name__}", size)
