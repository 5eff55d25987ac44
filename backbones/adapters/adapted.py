"""A plain backbone and an adapter as one module: image to pyramid."""

from typing import Any

from torch import Tensor, nn

from backbones.defocus import DefocusBackbone


class Adapter(nn.Module):
    """Turns what a plain backbone sees into the scales that heads expect.

    Called with the backbone's maps, where it needs no more than them; `adapt` is for those that do.

    Attributes:
        out_channels: Channels of each output.
        scales: Stride of each output as a multiple of the backbone's.
    """

    out_channels: tuple[int, ...]
    scales: tuple[float, ...]

    @classmethod
    def fit(cls, net: DefocusBackbone, **settings) -> "Adapter":
        """The adapter for ``net``; what follows from the backbone need not be said.

        Raises:
            ValueError: ``net`` does not give what the adapter takes; the message says what would.
        """
        adapter = cls(**{**cls.read_settings(net), **settings})
        adapter.check(net)
        return adapter

    @staticmethod
    def read_settings(net: DefocusBackbone) -> dict[str, Any]:
        """Arguments of the constructor that follow from the backbone."""
        return dict(in_channels=net.embed_dims)

    def check(self, net: DefocusBackbone) -> None:
        """Raises ValueError if ``net`` does not give what the adapter takes."""

    def adapt(self, net: DefocusBackbone, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs for the images ``x`` `(b, c, H, W)`."""
        return self(net(x))


class AdaptedBackbone(nn.Module):
    """A backbone seen through an adapter: `(b, c, H, W)` images to a pyramid, finest map first.

    Args:
        net: The plain backbone.
        adapter: Built for it, as by ``SimpleFPN.fit(net)``.

    Attributes:
        out_channels: Channels of each map.
        out_strides: Stride of each map in pixels.

    Raises:
        ValueError: The backbone does not give what the adapter takes.
    """

    def __init__(self, net: DefocusBackbone, adapter: Adapter):
        super().__init__()
        adapter.check(net)
        self.net = net
        self.adapter = adapter

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each map, finest first."""
        return self.adapter.out_channels

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Stride of each map in pixels, finest first."""
        return tuple(int(scale * self.net.patch_size) for scale in self.adapter.scales)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid of images `(b, c, H, W)`: a map `(b, out_channels[i], ·, ·)` of each stride, finest first."""
        return self.adapter.adapt(self.net, x)

    def no_weight_decay(self) -> set[str]:
        """As `DefocusBackbone.no_weight_decay`; of the adapter all vectors."""
        vectors = {f"adapter.{name}" for name, p in self.adapter.named_parameters() if p.ndim == 1}
        return vectors | {f"net.{name}" for name in self.net.no_weight_decay()}

    def get_layer_id(self, name: str) -> int:
        """As `DefocusBackbone.get_layer_id`; the adapter belongs with the final norm."""
        if name.startswith("net."):
            return self.net.get_layer_id(name.removeprefix("net."))
        return len(self.net.blocks) + 1
