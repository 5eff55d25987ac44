"""What is a layer, a token and a class token in a De-focus backbone and in timm's ViT, Swin and ResNet.

timm's models are known by what they are made of, so that this file needs no framework.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.classifier import DefocusClassifier
from backbones.defocus import DefocusBackbone
from backbones.layers.scan_order import TokenGrid, to_sequence


@dataclass(frozen=True)
class Layout:
    """How the n tokens of a layer's input or output lie on the image.

    Attributes:
        rows: Rows of cells that the image reaches.
        columns: Columns of cells that the image reaches.
        stride: Side of a cell in pixels.
        cells: The cell of each token, row · columns + column, `(n,)`; -1 for tokens that lie nowhere on the image.
        padding: Whether a token is one of padding, `(n,)`.
        class_token: Index of the class token, None without one.
        ordered: Whether the tokens are a sequence, whose order the network knows.
    """

    rows: int
    columns: int
    stride: int
    cells: np.ndarray
    padding: np.ndarray
    class_token: int | None = None
    ordered: bool = False

    @property
    def image_tokens(self) -> np.ndarray:
        """Indices of the tokens that lie on the image, in the order in which they stand."""
        return np.flatnonzero(self.cells >= 0)

    @property
    def positions(self) -> np.ndarray:
        """Row and column, in pixels, of the centre of each of `image_tokens`, `(k, 2)`."""
        cells = self.cells[self.image_tokens]
        return (np.stack((cells // self.columns, cells % self.columns), axis=-1) + 0.5) * self.stride

    def to_map(self, values: np.ndarray) -> np.ndarray:
        """Values of all tokens, `(…, n)`, as a map `(…, rows, columns)`; 0 where no token lies."""
        found = np.zeros((*values.shape[:-1], self.rows * self.columns), values.dtype)
        found[..., self.cells[self.image_tokens]] = values[..., self.image_tokens]
        return found.reshape(*values.shape[:-1], self.rows, self.columns)

    def token_at(self, row: float, column: float) -> int:
        """The token at a place on the image, given as fractions of its height and width, each in [0, 1]."""
        cell = min(int(row * self.rows), self.rows - 1) * self.columns
        cell += min(int(column * self.columns), self.columns - 1)
        return int(np.flatnonzero(self.cells == cell)[0])


@dataclass(frozen=True)
class Layer:
    """A layer as the recipes take it.

    Attributes:
        name: As in ``named_modules()`` of the network.
        run: Tokens `(b, n, c)` to tokens `(b, m, d)`.
        before: The layout of its input.
        after: The layout of its output.
        causal: Whether a token sees itself and earlier ones only.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    before: Layout
    after: Layout
    causal: bool = False

    @property
    def residual(self) -> bool:
        """Whether an output token stands where the input token of its index does."""
        return len(self.before.cells) == len(self.after.cells)


@dataclass(frozen=True)
class Network:
    """A network cut into layers, for images of one size.

    Attributes:
        family: What it is: the class's name.
        embed: Images `(b, c, H, W)` to the first layer's tokens.
        layers: In the order in which they run.
        finish: The last layer's tokens to those that head or map are made of, in the same layout.
        logits: Those to `(b, classes)`; None without a head.
        loss: Those, and classes `(b,)`, to the training loss. Without a head it is the norm of the mean of the tokens
            on the image, whatever the classes.
    """

    family: str
    embed: Callable[[Tensor], Tensor]
    layers: tuple[Layer, ...]
    finish: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None
    loss: Callable[[Tensor, Tensor | None], Tensor]


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """The model in evaluation and without gradients of parameters, which the recipes do not ask for; then as before."""
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def cut(model: nn.Module, image: Tensor) -> Network:
    """A network as layers, to be used on images of one size, in `measuring`.

    Args:
        model: A De-focus backbone or classifier, or a ViT, Swin or ResNet of timm.
        image: `(1, c, H, W)`.

    Raises:
        ValueError: Another model.
    """
    if isinstance(model, DefocusBackbone):
        return _cut_defocus(model, image)
    if all(hasattr(model, name) for name in ("patch_embed", "_pos_embed", "blocks", "norm")):
        return _cut_vit(model, image)
    if hasattr(model, "patch_embed") and all(hasattr(stage, "blocks") for stage in getattr(model, "layers", [None])):
        return _cut_swin(model, image)
    if all(hasattr(model, name) for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer4")):
        return _cut_resnet(model, image)
    raise ValueError(
        f"what is a layer of a {type(model).__name__} is not known here: give a De-focus backbone, or a "
        "VisionTransformer, SwinTransformer or ResNet of timm"
    )


def _cut_defocus(model: Any, image: Tensor) -> Network:
    layout = sequence_layout(model.tokenize(image)[1], model.patch_size)
    layers = tuple(
        Layer(f"blocks.{i}", block, layout, layout, causal=getattr(block.mixer, "causal", True))
        for i, block in enumerate(model.blocks[: model.out_indices[-1] + 1])
    )
    whole = len(layers) == len(model.blocks)
    with_head = isinstance(model, DefocusClassifier) and model.num_classes > 0
    return Network(
        family=type(model).__name__,
        embed=lambda images: model.tokenize(images)[0],
        layers=layers,
        finish=model.norm if whole else nn.Identity(),
        logits=(lambda tokens: model.forward_heads(tokens)[0]) if with_head else None,
        loss=model.loss_of_features if with_head else _mean_loss(layout),
    )


def sequence_layout(grid: TokenGrid, patch_size: int) -> Layout:
    """The layout of a De-focus backbone's sequence, from what ``tokenize`` says of it; the class token last."""
    padded = torch.arange(grid.padded_rows * grid.padded_columns).reshape(1, grid.padded_rows, grid.padded_columns, 1)
    order = to_sequence(padded, grid.section).flatten().numpy()
    row, column = order // grid.padded_columns, order % grid.padded_columns
    inside = (row < grid.rows) & (column < grid.columns)
    cells = np.append(np.where(inside, row * grid.columns + column, -1), -1)
    return Layout(grid.rows, grid.columns, patch_size, cells, np.append(~inside, False), len(order), ordered=True)


def _cut_vit(model: Any, image: Tensor) -> Network:
    def embed(images: Tensor) -> Tensor:
        return model.norm_pre(model._pos_embed(model.patch_embed(images)))

    first, stride = model.num_prefix_tokens, model.patch_embed.patch_size[0]
    rows, columns = model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    cells = np.concatenate((np.full(first, -1), np.arange(rows * columns)))
    # Of the prefix the class token comes first, then registers.
    class_token = 0 if getattr(model, "cls_token", None) is not None else None
    layout = Layout(rows, columns, stride, cells, np.zeros(len(cells), bool), class_token, ordered=True)
    layers = tuple(Layer(f"blocks.{i}", block, layout, layout) for i, block in enumerate(model.blocks))
    return _timm_network(model, embed, layers, model.norm, model.forward_head)


def _cut_swin(model: Any, image: Tensor) -> Network:
    def step(downsample: nn.Module, block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: block(downsample(x))

    modules = []
    for i, stage in enumerate(model.layers):
        for k, block in enumerate(stage.blocks):
            # What halves the grid goes along with the block after it.
            run = step(stage.downsample, block) if k == 0 else block
            modules.append((f"layers.{i}.blocks.{k}", run))
    layers, embed = _grid_layers(model.patch_embed, modules, image, channels_last=True)

    def head(tokens: Tensor) -> Tensor:
        last = layers[-1].after
        return model.forward_head(tokens.unflatten(1, (last.rows, last.columns)))

    return _timm_network(model, embed, layers, model.norm, head)


def _cut_resnet(model: Any, image: Tensor) -> Network:
    def stem(images: Tensor) -> Tensor:
        return model.maxpool(model.act1(model.bn1(model.conv1(images))))

    stages = [f"layer{i}" for i in range(1, 5)]
    modules = [(f"{stage}.{k}", block) for stage in stages for k, block in enumerate(getattr(model, stage))]
    layers, embed = _grid_layers(stem, modules, image, channels_last=False)

    def head(tokens: Tensor) -> Tensor:
        last = layers[-1].after
        return model.forward_head(tokens.unflatten(1, (last.rows, last.columns)).permute(0, 3, 1, 2))

    return _timm_network(model, embed, layers, nn.Identity(), head)


def _grid_layers(
    stem: Callable, modules: Sequence[tuple[str, Callable]], image: Tensor, channels_last: bool
) -> tuple[tuple[Layer, ...], Callable]:
    """Layers between grids, as functions of tokens, and the stem as one of images to tokens."""

    def to_tokens(x: Tensor) -> Tensor:
        return x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)

    def of_tokens(run: Callable, rows: int, columns: int) -> Callable[[Tensor], Tensor]:
        def layer(tokens: Tensor) -> Tensor:
            grid = tokens.unflatten(1, (rows, columns))
            return to_tokens(run(grid if channels_last else grid.permute(0, 3, 1, 2)))

        return layer

    def layout(x: Tensor, stride: int) -> Layout:
        rows, columns = x.shape[1:3] if channels_last else x.shape[2:]
        return Layout(rows, columns, stride, np.arange(rows * columns), np.zeros(rows * columns, bool))

    x = stem(image)
    before = layout(x, round(image.shape[-1] / x.shape[2 if channels_last else 3]))
    layers = []
    for name, run in modules:
        x = run(x)
        after = layout(x, 1)
        after = layout(x, before.stride * round(before.columns / after.columns))
        layers.append(Layer(name, of_tokens(run, before.rows, before.columns), before, after))
        before = after
    return tuple(layers), lambda images: to_tokens(stem(images))


def _timm_network(model: Any, embed: Callable, layers: tuple[Layer, ...], finish: Callable, head: Callable) -> Network:
    with_head = model.num_classes > 0

    def loss(tokens: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return F.cross_entropy(head(tokens), target)

    return Network(
        family=type(model).__name__,
        embed=embed,
        layers=layers,
        finish=finish,
        logits=head if with_head else None,
        loss=loss if with_head else _mean_loss(layers[-1].after),
    )


def _mean_loss(layout: Layout) -> Callable[[Tensor, Tensor | None], Tensor]:
    chosen = torch.as_tensor(layout.image_tokens)

    def loss(tokens: Tensor, target: Tensor | None) -> Tensor:
        return torch.linalg.vector_norm(tokens[:, chosen].mean(1), dim=-1).sum()

    return loss
