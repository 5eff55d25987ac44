"""What transformers keeps of a De-focus model in ``config.json``: a config for each family."""

import inspect
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from backbones import adapters
from backbones.defocus import FAMILIES, DefocusBackbone
from backbones.mixers.sizes import resolve_arch

ADAPTERS = {kind.__name__: kind for kind in (adapters.SimpleFPN, adapters.TapPyramid, adapters.InteractionAdapter)}
# What every block takes beside the arguments of its mixer.
_COMMON = ("self", "arch", "drop_path", "rope_scale", "delta_scale")


class DefocusConfig(BackboneConfigMixin, PreTrainedConfig):
    """A De-focus backbone, the adapter that may stand on it, and the heads of a classifier.

    A family's config is `DefocusMambaConfig`, and so on, with the arguments of its mixer (``decay``, ``phase``, a ViT's
    ``causal``) beside these.

    Without an adapter the stages are, as everywhere in transformers, the "stem" and "stage1" to the last block:
    ``out_indices`` counts the stem as 0, where the plain backbone counts the first block so. With an adapter they are
    its outputs by their strides in pixels, "stride8" and so on, and all of them come out unless some are named.

    Args:
        arch: As of the family: a name, or a dict of sizes.
        num_channels: Channels of the image; ``in_channels`` is the same.
        patch_size: As of `DefocusBackbone`.
        section_size: The same.
        rope_scale: The same.
        delta_scale: The same.
        drop_path_rate: The same.
        frozen_stages: The same.
        adapter: None, or ``dict(type="SimpleFPN" | "TapPyramid" | "InteractionAdapter")`` and what differs from its
            defaults. What follows from the backbone need not be said; ``out_indices`` in it names, as in the plain
            backbone, the blocks that it takes, by default the last one, or as many as it needs at even distances.
        head: "linear" or "mlp", as of `DefocusClassifier`.
        auxiliary_loss: The same.
        image_size: Side of a classifier's images, for the image processor that is saved with it; the model takes any.
        out_features: Names of the stages whose maps a backbone gives; None for the last one, or all of an adapter.
        out_indices: Their numbers.

    Raises:
        ValueError: An argument outside its range.
    """

    family: ClassVar[type[DefocusBackbone]]
    mixer_arguments: ClassVar[tuple[str, ...]] = ()
    attribute_map: ClassVar[dict[str, str]] = {"in_channels": "num_channels"}

    arch: str | dict = "base"
    num_channels: int = 3
    patch_size: int = 16
    section_size: int | list[int] | tuple[int, ...] | None = None
    rope_scale: float | int = 1.0
    delta_scale: float | int = 1.0
    drop_path_rate: float | int = 0.0
    frozen_stages: int = -1
    adapter: dict | None = None
    head: str = "linear"
    auxiliary_loss: bool = True
    image_size: int = 224
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        # Follow from the other fields, and would be stale where those are changed in the file.
        kwargs.pop("stage_names", None)
        if self.adapter is not None and self.adapter.get("type") not in ADAPTERS:
            raise ValueError(f"adapter must have a type, one of {', '.join(ADAPTERS)}, got {self.adapter}")
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # `from_pretrained(folder, adapter=...)` sets what it is given one after the other: the stages are others then.
        if name in ("adapter", "arch") and getattr(self, "_post_init_done", False):
            self.set_output_features_output_indices(None, None)

    @property
    def sizes(self) -> Any:
        """The sizes that ``arch`` means, as of the family's block."""
        return resolve_arch(self.arch, self.family.block.archs)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.sizes.embed_dims

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self.sizes.depth

    @property
    def stage_names(self) -> list[str]:
        """What can be asked for as ``out_features``."""
        if self.adapter is None:
            return ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]
        return [f"stride{stride:g}" for stride in self.adapter_strides]

    @property
    def adapter_strides(self) -> list[float]:
        """Strides in pixels of the adapter's outputs, finest first."""
        kind, settings = ADAPTERS[self.adapter["type"]], self.adapter_settings
        defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
        count, finest = (settings.get(name, defaults.get(name, 0)) for name in ("num_outs", "start_level"))
        return [self.patch_size * 0.25 * 2**level for level in range(finest, finest + count)]

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """The adapter's arguments that are not read from the backbone."""
        return {name: value for name, value in self.adapter.items() if name not in ("type", "out_indices")}

    @property
    def adapter_blocks(self) -> tuple[int, ...]:
        """The blocks that the adapter takes, none negative."""
        depth = self.num_hidden_layers
        if "out_indices" in self.adapter:
            return tuple(index % depth for index in self.adapter["out_indices"])
        if self.adapter["type"] == "SimpleFPN":
            return (depth - 1,)
        if self.adapter["type"] == "TapPyramid":
            return adapters.tap_indices(depth, 4 - self.adapter.get("start_level", 0))
        return adapters.tap_indices(depth, self.adapter.get("num_groups", min(4, depth)))

    @property
    def backbone_arguments(self) -> dict[str, Any]:
        """The arguments of the family's class, less those that say what comes out."""
        names = ("arch", "patch_size", "rope_scale", "delta_scale", "drop_path_rate", "frozen_stages")
        arguments = {name: getattr(self, name) for name in (*names, "section_size", *self.mixer_arguments)}
        return arguments | {"in_channels": self.num_channels}

    def set_output_features_output_indices(self, out_features: list | None, out_indices: list | None) -> None:
        """As transformers' own; of an adapter all outputs come out where none is named."""
        if out_features is None and out_indices is None and self.adapter is not None:
            out_features = list(self.stage_names)
        super().set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


def _config_of(name: str, family: type[DefocusBackbone]) -> type[DefocusConfig]:
    parameters = inspect.signature(family.block.__init__).parameters
    mixer = {key: value for key, value in parameters.items() if key not in _COMMON}
    members = {
        "__module__": __name__,
        "__doc__": f"A `DefocusConfig` of `{name}`.",
        "__annotations__": {key: value.annotation for key, value in mixer.items()},
        "model_type": f"defocus_{name.removeprefix('Defocus').lower()}",
        "family": family,
        "mixer_arguments": tuple(mixer),
    }
    defaults = {key: value.default for key, value in mixer.items()}
    return type(f"{name}Config", (DefocusConfig,), members | defaults)


# Family to config: `DefocusMambaConfig` and so on.
CONFIGS: dict[str, type[DefocusConfig]] = {}
for _name, _family in FAMILIES.items():
    CONFIGS[_name] = globals()[f"{_name}Config"] = _config_of(_name, _family)
