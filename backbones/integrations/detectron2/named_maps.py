"""The backbones and the adapters as Detectron2's `Backbone`: maps by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from detectron2.modeling import Backbone
from omegaconf import OmegaConf
from torch import Tensor

from backbones import adapters, defocus
from backbones.integrations.detectron2.checkpoints import refuse_other_sizes


class NamedMaps(Backbone):
    """Detectron2's contract for a module that returns a tuple of maps and knows their channels and strides.

    Images whose sides are no multiples of ``size_divisibility`` are padded with zeros at the right and the bottom, as
    Detectron2 does where it asks; it does not ask a backbone below its own `SimpleFeaturePyramid`.
    """

    def _describe(self, net, out_features, size_divisibility: int, square_pad: int) -> None:
        """Fills the contract from the ``out_channels`` and ``out_strides`` of ``net``."""
        channels, strides = tuple(net.out_channels), tuple(net.out_strides)
        names = _default_names(strides) if out_features is None else tuple(out_features)
        if len(names) != len(channels) or len(set(names)) != len(names):
            raise ValueError(
                f"out_features must name {len(channels)} maps, of strides {strides}, each differently, got {names}"
            )
        for name, value in (("size_divisibility", size_divisibility), ("square_pad", square_pad)):
            if value < 0:
                raise ValueError(f"{name} must be 0 (no padding) or more, got {value}")
        self._out_features = list(names)
        self._out_feature_channels = dict(zip(names, channels))
        self._out_feature_strides = dict(zip(names, strides))
        self._size_divisibility = size_divisibility
        self._square_pad = square_pad

    @property
    def size_divisibility(self) -> int:
        """What the sides of images are padded to a multiple of; 0 for no padding."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same in the words of `ImageList.from_tensors`, with the side of a square to pad to, 0 for none."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}

    def _name_maps(self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> dict[str, Tensor]:
        if self._size_divisibility > 1:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % self._size_divisibility, 0, -height % self._size_divisibility))
        return dict(zip(self._out_features, forward(x), strict=True))


class AdaptedBackbone(NamedMaps):
    """A backbone of this module with one of our adapters: images to a pyramid.

        L(AdaptedBackbone)(net=L(DefocusMamba)(arch="base"), adapter=SimpleFPN, out_channels=256)

    Args:
        net: The backbone.
        adapter: A class of `backbones.adapters`.
        out_features: A name for each map. None names maps of strides 4, 8, … "p2", "p3", ….
        size_divisibility: Images are padded to multiples of it; None takes the coarsest stride.
        square_pad: Images are padded to squares of this side before that; 0 for no squares.
        **settings: Arguments of the adapter, which rejects others; what follows from ``net`` need not be said.

    Raises:
        ValueError: Another number of names than maps, or ``net`` does not give what the adapter takes.
    """

    def __init__(
        self,
        net: NamedMaps,
        adapter: type[adapters.Adapter],
        out_features: Sequence[str] | None = None,
        size_divisibility: int | None = None,
        square_pad: int = 0,
        **settings,
    ):
        super().__init__()
        self.net = net
        self.adapter = adapter.fit(net, **plain(settings))
        shapes = adapters.AdaptedBackbone(net, self.adapter)
        if size_divisibility is None:
            size_divisibility = max(shapes.out_strides)
        self._describe(shapes, out_features, size_divisibility, square_pad)
        net.gives_names = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by name, of images `(b, c, H, W)`."""
        return self._name_maps(partial(self.adapter.adapt, self.net), x)


def _named(family: type[defocus.DefocusBackbone]) -> type[NamedMaps]:
    """A family as a Detectron2 backbone; its parameters keep their names."""

    class Named(NamedMaps, family):
        # An adapter reads the family's own tuple.
        gives_names = True

        def __init__(self, *args, out_features=None, size_divisibility=None, square_pad=0, **kwargs):
            # Lazy configs hand over omegaconf's containers.
            args, kwargs = plain(list(args)), plain(kwargs)
            family.__init__(self, *args, **kwargs)
            if out_features is None and len(self.out_indices) > 1:
                out_features = [f"block{i}" for i in self.out_indices]
            self.register_load_state_dict_pre_hook(refuse_other_sizes)
            if size_divisibility is None:
                size_divisibility = 2 * self.patch_size
            self._describe(self, out_features, size_divisibility, square_pad)

        def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
            forward = partial(family.forward, self)
            return self._name_maps(forward, x) if self.gives_names else forward(x)

    Named.__name__ = Named.__qualname__ = family.__name__
    # Where lazy configs, which are written to files, find it.
    Named.__module__ = "backbones.integrations.detectron2"
    Named.__doc__ = f"""{family.__doc__.rstrip()}

    As a Detectron2 backbone: `forward` gives a dict of maps. All arguments of the family, and

    Args:
        out_features: A name for each map. None names a single map "last_feat", several "block3", … by their block.
        size_divisibility: Images are padded to multiples of it. None takes twice the patch, which a pyramid down to
            half the map's resolution needs; 0 pads to whole patches only, as under mmdet.
        square_pad: Images are padded to squares of this side before that; 0 for no squares.
    """
    return Named


# Family to its Detectron2 backbone.
BACKBONES: dict[str, type[NamedMaps]] = {name: _named(family) for name, family in defocus.FAMILIES.items()}


def plain(value: Any) -> Any:
    """Dicts and lists instead of omegaconf's and yacs' containers."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _default_names(strides: tuple[int, ...]) -> tuple[str, ...]:
    if len(strides) == 1:
        return ("last_feat",)
    powers = all(stride & (stride - 1) == 0 for stride in strides)
    if powers and len(set(strides)) == len(strides):
        return tuple(f"p{stride.bit_length() - 1}" for stride in strides)
    return tuple(f"map{i}" for i in range(len(strides)))
