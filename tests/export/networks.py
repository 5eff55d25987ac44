"""Tiny networks, and a format that is none: what tests of exports start from."""

from pathlib import Path

import torch
from torch import nn

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.adapters import AdaptedBackbone, SimpleFPN
from backbones.export import Exportable, Target, name_maps

ARCHS = {
    DefocusMamba: dict(embed_dims=16, inner_dims=64, depth=2, dt_rank=4, state_dims=4),
    DefocusViT: dict(embed_dims=16, depth=1, num_heads=2),
    DefocusRetNet: dict(embed_dims=16, depth=1, num_heads=2, value_dims=32, ffn_dims=24),
}
# One patch, a row of patches, odd sides, several sections, more tokens than any form takes at once.
SIZES = [(1, 8, 8), (2, 8, 8), (1, 5, 3), (1, 8, 90), (2, 49, 37), (1, 96, 96), (1, 8, 2400)]


def tiny(family: type[nn.Module], section: int | None = None, pyramid: bool = False, **sizes: int) -> Exportable:
    """A network of one or two blocks on patches of 8 pixels, or of other ``sizes``."""
    torch.manual_seed(0)
    net = family(ARCHS[family] | sizes, patch_size=8, section_size=section, rope_scale=2.0, delta_scale=1.5)
    if pyramid:
        net = AdaptedBackbone(net, SimpleFPN.fit(net, out_channels=8, num_outs=5))
    return of_module(net.eval(), name_maps(net.out_strides))


def of_module(model: nn.Module, outputs: tuple[str, ...]) -> Exportable:
    """Any module that takes images."""
    return Exportable(model.eval(), outputs, "tiny", patch=8, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))


def pretended(change=lambda outputs: outputs, model: nn.Module | None = None) -> Target:
    """A format whose files are text and run as ``model``, their outputs changed by ``change``."""

    def write(network: Exportable, path: Path) -> None:
        for suffix in (".xml", ".bin"):
            path.with_suffix(suffix).write_text(f"{network.about}{suffix}")

    def load(path: Path):
        assert path.read_text() == "tiny.xml"
        return lambda images: change(list(model(images)))

    return Target("pretended", (".xml", ".bin"), write, load, lambda: {"pretended": "1.2"})
