"""Published figures to lay beside our own: of models whose papers give them. De-focus' paper gives none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure in a paper.

    Attributes:
        name: In timm, or the stock config.
        size: Height and width of the image.
        giga: What the paper calls GFLOPs, and is multiply-adds.
        source: Where it stands.
    """

    name: str
    size: tuple[int, int]
    giga: float
    source: str


_SWIN = "arXiv 2103.14030, table 1"
FIGURES = (
    Published("deit_small_patch16_224", (224, 224), 4.6, _SWIN),
    Published("deit_base_patch16_224", (224, 224), 17.5, _SWIN),
    Published("swin_tiny_patch4_window7_224", (224, 224), 4.5, _SWIN),
    Published("swin_base_patch4_window7_224", (224, 224), 15.4, _SWIN),
)


def find_published(name: str, size: tuple[int, int]) -> Published | None:
    """The published figure of a model at a size, or None."""
    return next((figure for figure in FIGURES if (figure.name, figure.size) == (name, size)), None)
