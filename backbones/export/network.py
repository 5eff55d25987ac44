"""What is exported: a network, the names of what goes in and comes out, and how its images are prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backbones.defocus import DefocusBackbone

# Sizes that a program is traced with: (batch, height, width). None is a multiple of a patch, or one patch alone.
TRACED = (2, 70, 92)
# Images, and at least so many patches down and across, for a compiler: more tokens than two blocks of any operation.
SHOWN = (2, 17, 31)


@dataclass(frozen=True)
class Exportable:
    """A network to export.

    Attributes:
        model: In evaluation; maps images `(b, channels, H, W)` to the outputs, as a tuple or a list.
        outputs: Names of the outputs.
        about: What it is and where its weights come from, in words.
        patch: Side of a patch in pixels: the smallest image.
        mean: Of each channel, of pixels from 0 to 255.
        std: The same.
        channels: Of an image.
        size: (height, width) of its images; None for any.
        batch: Images at once; None for any number.
        classes: Names of what it tells apart; empty where it tells nothing.
        details: What else whoever runs it should know.
    """

    model: nn.Module
    outputs: tuple[str, ...]
    about: str
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    size: tuple[int, int] | None = None
    batch: int | None = None
    classes: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)

    def images(self, batch: int, height: int, width: int) -> Tensor:
        """Random normalised images, the same for the same arguments."""
        generator = torch.Generator().manual_seed(batch * 10**8 + height * 10**4 + width)
        return torch.randn(batch, self.channels, height, width, generator=generator)

    @property
    def traced(self) -> tuple[int, int, int]:
        """Batch, height and width of the images to trace it with."""
        return (self.batch or TRACED[0], *(self.size or TRACED[1:]))

    @property
    def shown(self) -> tuple[int, int, int]:
        """Batch, height and width of the images to trace it with for a compiler.

        Inductor takes two open sizes, or one and the number 1, for the same where they are so for these images, and
        what it compiles does not ask again. So here are two images, and more sections each way and blocks of tokens.
        """
        rows, columns = section_of(self.model)
        height = max(3, -(-SHOWN[1] // rows)) * rows * self.patch
        width = max(4, -(-SHOWN[2] // columns)) * columns * self.patch
        return (self.batch or SHOWN[0], *(self.size or (height, width)))

    @property
    def dynamic(self) -> dict[int, object]:
        """Dimensions of the images that stay open, as `torch.export` takes them."""
        return {axis: torch.export.Dim.DYNAMIC for axis in self.open_axes}

    @property
    def open_axes(self) -> dict[int, str]:
        """The same, with their names."""
        open_axes = {0: "batch"} if self.batch is None else {}
        return open_axes | ({2: "height", 3: "width"} if self.size is None else {})

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """Sizes that an export is checked with: one patch, odd sides, long sides, 1,024 pixels; one image and two."""
        batches = (1, 2) if self.batch is None else (self.batch,)
        if self.size is not None:
            return [(batch, *self.size) for batch in batches]
        p = self.patch
        sizes = [
            (1, p, p),
            (2, p, p),
            (1, p, 9 * p),
            (2, 97, 131),
            (1, 5 * p + 1, 3 * p - 1),
            (2, 14 * p, 14 * p),
            (1, 384, 640),
            (1, 1024, 1024),
        ]
        return sizes if self.batch is None else [(self.batch, height, width) for _, height, width in sizes]


def patch_of(model: nn.Module) -> int:
    """Side of a patch, in pixels, of the De-focus backbone in a model; else 32, the coarsest usual stride."""
    return next((net.patch_size for net in model.modules() if isinstance(net, DefocusBackbone)), 32)


def section_of(model: nn.Module) -> tuple[int, int]:
    """(rows, columns) of a section, in patches, of the De-focus backbone in a model; else one patch."""
    return next((net.section or (1, 1) for net in model.modules() if isinstance(net, DefocusBackbone)), (1, 1))


class Flat(nn.Module):
    """A network whose outputs, in whatever they are nested, are a tuple of tensors.

    Args:
        model: Of one argument, the images.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs for images `(b, c, H, W)`, in order."""
        return tuple(flatten(self.model(images)))


def flatten(outputs: Tensor | Sequence | Mapping) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    return [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def name_maps(strides: Sequence[int], indices: Sequence[int] = ()) -> tuple[str, ...]:
    """Names of a network's maps: by their strides, or by their blocks where several have one stride."""
    if len(set(strides)) == len(strides):
        return tuple(f"stride{stride}" for stride in strides)
    return tuple(f"block{index}" for index in indices)
