"""The De-focus backbone: image to tokens to sequence to blocks to maps."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.layers.drop_path import DropPath, drop_path_rates
from backbones.layers.norms import LayerNorm
from backbones.layers.patch_embed import PatchEmbed
from backbones.layers.scan_order import TokenGrid, to_sequence
from backbones.mixers import MambaBlock, RetNetBlock, ViTBlock
from backbones.mixers.sizes import resolve_arch

# Name to class, filled by the definition of each family.
FAMILIES: dict[str, type["DefocusBackbone"]] = {}


class DefocusBackbone(nn.Module):
    """A causal backbone over one token sequence per image, whatever mixes the tokens.

    The class token stands at the end of the sequence, where it has seen everything; the maps leave it out.

    A family is a subclass that names its block: ``class DefocusX(DefocusBackbone, block=XBlock)``. The block is built
    as ``XBlock(arch, drop_path, rope_scale, delta_scale, **mixer)``, maps `(b, l, embed_dims)` to the same, and has
    `archs`, its table of sizes, and `undecayed`, the names of parameters that should not decay.

    Args:
        arch: A name in the block's table, or a dict of its sizes, among them ``embed_dims`` and ``depth``.
        in_channels: Channels of the image.
        patch_size: Side of a patch in pixels: the stride of the maps.
        section_size: Side, or (height, width), in pixels of the sections of the 2D-section scan, multiples of
            ``patch_size``; None for row order.
        rope_scale: Divides the position in the phase; about the ratio of the sequence lengths of use and
            pre-training.
        delta_scale: Divides the step or distance in the decay; about the ratio of the resolutions of use and
            pre-training.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        out_indices: Blocks whose output becomes a map; negative ones count from the end. The last block's map
            passes through the final norm. Blocks after the last one named are not run, and not trainable.
        frozen_stages: -1 freezes nothing; k ≥ 0 freezes patch embedding, class token and the first k blocks
            (with all blocks, the final norm too).
        with_cp: Recompute each block in backward instead of keeping its activations.
        **mixer: Further arguments of the block, which rejects those it does not know.

    Raises:
        ValueError: An argument outside its range; the message names the range.
        TypeError: An argument of another type.
    """

    # A class, of which more is asked than of any module: see above.
    block: Any
    # As in the released detectors; the released classifiers have others.
    projection_name = "projection"
    norm_eps = 1e-5

    def __init_subclass__(cls, block: type[nn.Module] | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        if block is not None:
            cls.block = block
            FAMILIES[cls.__name__] = cls

    def __init__(
        self,
        arch: str | dict = "base",
        in_channels: int = 3,
        patch_size: int = 16,
        section_size: int | Sequence[int] | None = None,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        **mixer: Any,
    ):
        super().__init__()
        sizes = resolve_arch(arch, self.block.archs)
        embed_dims, depth = sizes.embed_dims, sizes.depth
        for name, value in (("rope_scale", rope_scale), ("delta_scale", delta_scale)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f"frozen_stages must be -1 (none) to {depth} (all blocks), got {frozen_stages}")
        patch_size = _whole("patch_size", patch_size)
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}")
        self.embed_dims = embed_dims
        self.patch_size = patch_size
        self.section = _section_in_tokens(section_size, patch_size)
        self.out_indices = _resolve_out_indices(out_indices, depth)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, self.projection_name)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        self.blocks = nn.ModuleList(
            self.block(sizes, rate, rope_scale, delta_scale, **mixer) for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = LayerNorm(embed_dims, eps=self.norm_eps)
        self.reset_parameters()
        self.freeze_after(self.out_indices[-1])
        self._freeze()

    def reset_parameters(self) -> None:
        """Sets the initial values of what stands outside the blocks; each block has set its own."""
        nn.init.trunc_normal_(self.patch_embed.conv.weight, std=0.02)
        # Not zero: a token of padding would be the zero vector, where RMSNorm's gradient is 1 / sqrt(eps) = 316 and
        # grows with every block.
        assert self.patch_embed.conv.bias is not None
        nn.init.trunc_normal_(self.patch_embed.conv.bias, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each map that `forward` returns."""
        return (self.embed_dims,) * len(self.out_indices)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Stride, in pixels, of each map that `forward` returns."""
        return (self.patch_size,) * len(self.out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of an image batch.

        Args:
            x: `(b, in_channels, H, W)`, H and W at least 1.

        Returns:
            One `(b, embed_dims, ceil(H / patch_size), ceil(W / patch_size))` map per out index, in ascending order
            of blocks.

        Raises:
            ValueError: ``x`` has another shape.
        """
        return self.forward_maps(x, self.out_indices)

    def forward_maps(self, x: Tensor, out_indices: tuple[int, ...]) -> tuple[Tensor, ...]:
        """As `forward`, with other blocks: ``out_indices`` ascending and none negative."""
        sequence, grid = self.tokenize(x)
        return tuple(grid.to_map(features) for features in self.run_to(sequence, out_indices))

    def forward_sequence(self, x: Tensor) -> Tensor:
        """All tokens after the last block and the final norm, `(b, l, embed_dims)`, the class token last.

        Args:
            x: `(b, in_channels, H, W)`; the tokens stand in scan order, those of padding among them.
        """
        return self.norm(self.run_blocks(self.tokenize(x)[0]))

    def tokenize(self, x: Tensor) -> tuple[Tensor, TokenGrid]:
        """What the first block takes, and how its tokens lie on the image.

        Args:
            x: `(b, in_channels, H, W)`, H and W at least 1.

        Returns:
            `(b, l, embed_dims)` in at least fp32 with the class token last, and the grid.

        Raises:
            ValueError: ``x`` has another shape.
        """
        in_channels = self.patch_embed.conv.in_channels
        if x.ndim == 4 and x.shape[0] == 0:
            raise ValueError(f"the batch is empty: got images {tuple(x.shape)}")
        if x.ndim != 4 or x.shape[1] != in_channels or 0 in x.shape:
            raise ValueError(f"expected images (b, {in_channels}, H, W), H and W at least 1, got {tuple(x.shape)}")
        section = self.section or (1, 1)
        patches = self.patch_embed(x, (section[0] * self.patch_size, section[1] * self.patch_size))
        tokens = to_sequence(patches, self.section)
        # The residual stream stays in fp32 whatever the dtype of the weights.
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        cls_token = self.cls_token.to(dtype).expand(tokens.shape[0], -1, -1)
        rows, columns = ((side + self.patch_size - 1) // self.patch_size for side in x.shape[-2:])
        grid = TokenGrid(rows, columns, patches.shape[1], patches.shape[2], self.section)
        return torch.cat((tokens.to(dtype), cls_token), dim=1), grid

    def run_blocks(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The sequence `(b, l, embed_dims)` through blocks ``start`` to ``stop`` - 1; None for the last."""
        for block in self.blocks[start:stop]:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def set_drop_path_rate(self, rate: float) -> None:
        """Sets the stochastic depth of the last block to ``rate``, of the others linearly down to 0 at the first."""
        for block, block_rate in zip(self.blocks, drop_path_rates(rate, len(self.blocks)), strict=True):
            cast(DropPath, block.drop_path).drop_prob = block_rate

    def run_to(self, x: Tensor, out_indices: Sequence[int]) -> Iterator[Tensor]:
        """Yields the sequence `(b, l, embed_dims)` after each of ``out_indices``, ascending, from `tokenize`'s on.

        After the last block it has passed the final norm.
        """
        start = 0
        for index in out_indices:
            x, start = self.run_blocks(x, start, index + 1), index + 1
            yield self.norm(x) if start == len(self.blocks) else x.to(self.norm.weight.dtype)

    def freeze_after(self, index: int) -> None:
        """Makes untrainable what does not run where the last map is that of block ``index``.

        It would get no gradient, for which DistributedDataParallel waits.
        """
        if index < len(self.blocks) - 1:
            for module in (*self.blocks[index + 1 :], self.norm):
                module.requires_grad_(False)

    def train(self, mode: bool = True):
        """As `torch.nn.Module.train`, but what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        self.cls_token.requires_grad_(False)
        frozen = [self.patch_embed, *self.blocks[: self.frozen_stages]]
        if self.frozen_stages == len(self.blocks):
            frozen.append(self.norm)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that should not decay: vectors, the class token, the scan's own constants."""
        names = {"cls_token"}
        for name, parameter in self.named_parameters():
            kept = "blocks." in name and name.rsplit(".", 1)[-1] in self.block.undecayed
            if kept or parameter.ndim == 1:
                names.add(name)
        return names

    def get_layer_id(self, name: str) -> int:
        """The depth of a parameter for layer-wise learning-rate decay.

        Args:
            name: As in ``named_parameters()`` of this module.

        Returns:
            0 for patch embedding and class token, i + 1 for block i, depth + 1 for the final norm.
        """
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "cls_token")) else len(self.blocks) + 1


class DefocusMamba(DefocusBackbone, block=MambaBlock):
    """De-focus Mamba (eq. 9). ``arch``: "small", "base", "large", or the fields of `mixers.mamba.MambaArch`."""


class DefocusViT(DefocusBackbone, block=ViTBlock):
    """De-focus ViT (eq. 8). ``arch``: "small", "base", or the fields of `mixers.vit.ViTArch`.

    With ``causal=False`` each token sees all others, the decay taking the distance either way.
    """


class DefocusRetNet(DefocusBackbone, block=RetNetBlock):
    """De-focus RetNet (eq. 4). ``arch``: "base", or the fields of `mixers.retnet.RetNetArch`."""


def _whole(name: str, value) -> int:
    """``value`` as an int: of Python, numpy, or whatever else counts."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} takes whole numbers, as 224, got {value!r}") from None


def _section_in_tokens(section_size, patch_size: int) -> tuple[int, int] | None:
    if section_size is None:
        return None
    sides = tuple(section_size) if isinstance(section_size, Iterable) else (section_size, section_size)
    sides = tuple(_whole("section_size", side) for side in sides)
    if len(sides) != 2 or any(side < patch_size or side % patch_size for side in sides):
        raise ValueError(
            f"section_size must be one or two positive multiples of patch_size={patch_size}, got {section_size}"
        )
    return sides[0] // patch_size, sides[1] // patch_size


def _resolve_out_indices(out_indices, depth: int) -> tuple[int, ...]:
    indices = tuple(out_indices) if isinstance(out_indices, Iterable) else (out_indices,)
    indices = tuple(_whole("out_indices", index) for index in indices)
    if not indices or any(not -depth <= i < depth for i in indices):
        raise ValueError(f"out_indices must be one or more of {-depth}..{depth - 1}, got {out_indices}")
    resolved = tuple(i % depth for i in indices)
    if list(resolved) != sorted(set(resolved)):
        raise ValueError(f"out_indices must name ascending, distinct blocks, got {out_indices}")
    return resolved
