"""The networks that are compared: rows of a table, all made of arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from backbones.classifier import CLASSIFIERS, DefocusClassifier

# Drop path of the last block at the first and at the last step: the published schedule, and what plain networks have.
STRONG, WEAK = (0.1, 0.7), (0.0, 0.1)


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained.

    Attributes:
        title: What tables and pictures call it.
        family: A name in `backbones.defocus.FAMILIES`.
        mixer: Arguments of its blocks.
        second_loss: Whether the mean of the image tokens is classified, too.
        drop_path: Rate of the last block at the first and at the last step.
    """

    title: str
    family: str
    mixer: dict = field(default_factory=dict)
    second_loss: bool = True
    drop_path: tuple[float, float] = STRONG

    def build(self, sizes: dict, **classifier) -> DefocusClassifier:
        """The untrained network.

        Args:
            sizes: The ``arch`` of its family.
            **classifier: Further arguments.
        """
        return CLASSIFIERS[self.family](sizes, auxiliary_loss=self.second_loss, **self.mixer, **classifier)


def _family(key: str, family: str, name: str, absent: dict) -> dict[str, Variant]:
    """A family's plain network, De-focus, and De-focus less one of its parts.

    Args:
        key: Prefix of the keys.
        family: As of `Variant`.
        name: What tables call it.
        absent: Arguments of the mixer as it is without De-focus.
    """
    fixed = dict(decay="fixed", phase="fixed")
    found = {
        f"{key}-plain": Variant(f"{name}, plain", family, absent, second_loss=False, drop_path=WEAK),
        f"{key}-defocus": Variant(f"De-focus {name}", family),
        f"{key}-unfiltered": Variant(f"De-focus {name}, no filters", family, absent),
        f"{key}-fixed": Variant(f"De-focus {name}, fixed filters", family, fixed),
        f"{key}-one-loss": Variant(f"De-focus {name}, one loss", family, second_loss=False),
        f"{key}-weak-drop": Variant(f"De-focus {name}, weak drop path", family, drop_path=WEAK),
    }
    if absent == fixed:
        # RetNet as published has fixed filters: without those that are learned it is the same network.
        del found[f"{key}-unfiltered"]
    return found


NONE = dict(decay="none", phase="none")
VARIANTS: dict[str, Variant] = {
    "vit-2d": Variant("ViT, not causal", "DefocusViT", dict(causal=False, **NONE), second_loss=False, drop_path=WEAK),
    **_family("vit", "DefocusViT", "ViT", NONE),
    # Mamba itself has a learned decay, and no phase.
    **_family("mamba", "DefocusMamba", "Mamba", dict(phase="none")),
    **_family("retnet", "DefocusRetNet", "RetNet", dict(decay="fixed", phase="fixed")),
}
# What pictures show, from left to right.
SHOWN = ("vit-2d", "vit-plain", "vit-defocus", "mamba-plain", "mamba-defocus", "retnet-plain", "retnet-defocus")
# Pairs of which the first should do better, says the paper: causal networks lack something, De-focus has it, and needs
# each of its parts. All parts are taken from one family.
CLAIMS = (
    ("vit-2d", "vit-plain"),
    ("vit-defocus", "vit-plain"),
    ("mamba-defocus", "mamba-plain"),
    ("retnet-defocus", "retnet-plain"),
    ("vit-defocus", "vit-unfiltered"),
    ("mamba-defocus", "mamba-unfiltered"),
    ("retnet-defocus", "retnet-fixed"),
    ("mamba-defocus", "mamba-fixed"),
    ("mamba-defocus", "mamba-one-loss"),
    ("mamba-defocus", "mamba-weak-drop"),
)
COMPARED = tuple(key for key in VARIANTS if any(key in pair for pair in CLAIMS))
