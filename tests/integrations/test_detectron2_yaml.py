"""The backbones in Detectron2's YAML."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_backbone

from tests.integrations.detectron2_networks import lazy_pyramid


def test_yaml_builds_the_same_as_a_lazy_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        """
MODEL:
  BACKBONE: {NAME: build_defocus_pyramid_backbone}
  DEFOCUS:
    OPTIONS:
      arch: {embed_dims: 64, inner_dims: 128, depth: 2, dt_rank: 4}
      section_size: 64
    PYRAMID: {OUT_CHANNELS: 32}
"""
    )
    config = get_cfg()
    config.merge_from_file(str(file))
    ours = build_backbone(config).eval()
    truth = instantiate(lazy_pyramid(section_size=64)).eval()
    truth.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 75, 107)
    actual, expected = ours(image), truth(image)
    assert list(actual) == ["p2", "p3", "p4", "p5", "p6"]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    config.MODEL.BACKBONE.NAME = "build_defocus_backbone"
    assert list(build_backbone(config)(image)) == ["last_feat"]


@pytest.mark.parametrize(
    "line, error, message",
    [
        ("FAMILY: ResNet", ValueError, "must be one of DefocusMamba"),
        ("OPTIONS: {drop_pth_rate: 0.1}", TypeError, "drop_pth_rate"),
        ("OPTION: {arch: small}", KeyError, "OPTION"),
    ],
)
def test_yaml_keys_that_do_nothing_are_errors(line, error, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"MODEL:\n  BACKBONE: {{NAME: build_defocus_backbone}}\n  DEFOCUS:\n    {line}\n")
    with pytest.raises(error, match=message):
        config = get_cfg()
        config.merge_from_file(str(file))
        build_backbone(config)
