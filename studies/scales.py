"""How large a study is: its networks, its seeds and the settings of its runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from studies.training import Settings
from studies.variants import COMPARED, SHOWN

SETTINGS = Settings(
    side=64,
    steps=800,
    train_images=12_000,
    test_images=2_000,
    measured_images=16,
    batch=32,
    learning_rate=3e-3,
    patch_size=8,
    sizes=dict(
        DefocusViT=dict(embed_dims=64, depth=6, num_heads=4),
        DefocusMamba=dict(embed_dims=64, inner_dims=128, depth=6, dt_rank=4),
        DefocusRetNet=dict(embed_dims=64, depth=6, num_heads=4, value_dims=128, ffn_dims=112),
    ),
)


@dataclass(frozen=True)
class Scale:
    """A study.

    Attributes:
        settings: Of its runs.
        variants: Keys of its networks.
        seeds: How many each is trained from, 0 and up.
    """

    settings: Settings
    variants: tuple[str, ...]
    seeds: int


SCALES = {
    "full": Scale(SETTINGS, COMPARED, seeds=3),
    "quick": Scale(replace(SETTINGS, steps=600), SHOWN, seeds=1),
}
