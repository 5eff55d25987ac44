"""A model of transformers in a folder of `save_pretrained`, as what can be exported."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")
ours = pytest.importorskip("backbones.integrations.transformers", reason="our backbones are not known to transformers")

from backbones.export import ExportError
from backbones.integrations.exportable import find_network
from tests.test_families import TINY

SIZES = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    num_queries=8,
)


def test_a_detector_in_a_folder(tmp_path):
    backbone = ours.CONFIGS["DefocusMamba"](arch=TINY["DefocusMamba"])
    model = transformers.DetrForObjectDetection(
        transformers.DetrConfig(backbone_config=backbone, num_labels=3, **SIZES)
    )
    model.eval().save_pretrained(tmp_path)
    network = find_network(str(tmp_path))
    assert network.outputs == ("logits", "pred_boxes") and len(network.classes) == 3 and network.patch == 16
    images = network.images(2, 50, 70)
    with torch.no_grad():
        logits, boxes = network.model(images)
        expected = model(images)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(boxes, expected.pred_boxes)
    with pytest.raises(ExportError, match="a folder of transformers with weights of its own: give it alone"):
        find_network(str(tmp_path), adapter="SimpleFPN")
