"""The rule that carries checkpoints to other resolutions, against what was released."""

import pytest

from backbones import DefocusMamba
from backbones.resolution import resolution_settings


@pytest.mark.parametrize(
    "use, pretrained, sections, section_size, rope_scale, delta_scale",
    [
        (224, 224, False, None, 1.0, 1.0),
        (224, 224, True, None, 1.0, 1.0),
        (1024, 224, True, 224, 20.0, 4.57),
        (384, 192, False, None, 4.0, 2.0),
        (1024, 384, True, 384, 7.13, 2.67),
    ],
)
def test_released_settings(use, pretrained, sections, section_size, rope_scale, delta_scale):
    settings = resolution_settings(use, pretrained, sections)
    assert settings["section_size"] == section_size
    assert settings["rope_scale"] == pytest.approx(rope_scale, rel=0.05)
    assert settings["delta_scale"] == pytest.approx(delta_scale, rel=0.005)


def test_of_an_oblong_only_the_area_counts():
    assert resolution_settings((512, 1024), 224)["rope_scale"] == pytest.approx(512 * 1024 / 224**2)
    assert resolution_settings((512, 2048), 224) == resolution_settings(1024, 224)


def test_the_backbone_takes_them():
    arch = dict(embed_dims=64, inner_dims=128, depth=1, dt_rank=4)
    backbone = DefocusMamba(arch, **resolution_settings(512, 224))
    assert backbone.section == (14, 14)


@pytest.mark.parametrize("use, pretrained", [(0, 224), ((512, -1), 224), (512, 0)])
def test_sides_must_be_positive(use, pretrained):
    with pytest.raises(ValueError, match="must be positive"):
        resolution_settings(use, pretrained)
