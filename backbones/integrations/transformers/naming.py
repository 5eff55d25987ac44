"""Keeps our parameters' names where transformers' heads rename theirs.

A head whose parameters were once called otherwise has a table of old and new names, and applies it to the whole of a
file, its backbone included: DETR's turns every ``out_proj`` into ``o_proj``, Mamba's and RetNet's among them.
"""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from backbones.integrations.transformers.config import CONFIGS


class TurnBack(WeightRenaming):
    """A renaming that is applied in loading, after the head's, and not in saving."""

    __slots__ = ()

    def reverse_transform(self) -> "TurnBack":
        """Itself: files have our names, so that saving has nothing to turn."""
        return self


def keep_names() -> None:
    """Makes transformers' loader leave the backbone's names as they are, in whatever head it stands."""
    for config in CONFIGS.values():
        renaming = TurnBack(r"mixer\.o_proj\.", "mixer.out_proj.")
        register_checkpoint_conversion_mapping(config.model_type, [renaming], overwrite=True)
