"""An export is written when it was seen to be right, and else nothing is."""

import hashlib
import json
import math

import pytest
import torch
from torch import nn

from backbones.export import ExportError, export
from tests.export.networks import of_module, pretended


class Pair(nn.Module):
    """Two outputs, the second a hundred times as large as the first."""

    def forward(self, images):
        return images, 100 * images


NETWORK = of_module(Pair(), ("small", "large"))
SIZES = [(1, 8, 8), (2, 5, 7)]


def test_files_and_manifest(tmp_path):
    out = tmp_path / "net.xml"
    manifest = export(NETWORK, pretended(model=Pair()), out, sizes=SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.xml", "net.xml.json"]
    assert json.loads((tmp_path / "net.xml.json").read_text()) == manifest
    assert manifest["files"]["net.bin"]["sha256"] == hashlib.sha256(b"tiny.bin").hexdigest()
    assert manifest["inputs"]["images"]["shape"] == [None, 3, None, None]
    assert manifest["inputs"]["images"]["dynamic"] == {"0": "batch", "2": "height", "3": "width"}
    assert manifest["outputs"] == ["small", "large"]
    assert (manifest["preprocessing"]["mean"], manifest["preprocessing"]["std"]) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    checked = manifest["checked_against_pytorch"]["sizes"]
    assert checked == [{"batch_height_width": list(size), "difference": 0.0} for size in SIZES]
    assert manifest["versions"]["pretended"] == "1.2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda outs: [outs[0] + 2e-4, outs[1]],
            r"output small differs from PyTorch's by 1\.\de-04 on images of 1 × 8 × 8, more than 1e-04",
        ),
        (lambda outs: [outs[0], outs[1] + 0.02], r"output large differs from PyTorch's by 1\.\de-04"),
        (lambda outs: [outs[0], outs[1] * math.nan], r"output large differs from PyTorch's by inf"),
        (lambda outs: [outs[0][..., :-1], outs[1]], r"output small .*: shape \(1, 3, 8, 7\) where PyTorch gives"),
        (lambda outs: outs[5], "the export does not run on images of 1 × 8 × 8: list index out of range"),
    ],
    ids=["small", "large", "nan", "shape", "error"],
)
def test_what_differs_leaves_everything_as_it_was(change, said, tmp_path):
    out = tmp_path / "net.xml"
    out.write_text("before")
    with pytest.raises(ExportError, match=said):
        export(NETWORK, pretended(change, Pair()), out, sizes=SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["net.xml"]
    assert out.read_text() == "before"


def test_differences_count_in_units_of_large_outputs(tmp_path):
    # 5e-3 of an output whose root mean square is 100.
    near = pretended(lambda outs: [outs[0] + 5e-5, outs[1] + 5e-3], Pair())
    manifest = export(NETWORK, near, tmp_path / "net.xml", sizes=SIZES)
    assert all(4e-5 < one["difference"] < 7e-5 for one in manifest["checked_against_pytorch"]["sizes"])


class Rounded(nn.Module):
    """What fp32 makes inexact, and float64 does not."""

    def forward(self, images):
        return images + 1e4 - 1e4


@pytest.mark.parametrize("wrong", [0.0, 2e-3], ids=["nearer", "further"])
def test_where_fp32_is_further_from_float64_the_export_may_be_as_far(wrong, tmp_path):
    network, out = of_module(Rounded(), ("map",)), tmp_path / "net.xml"
    target = pretended(lambda outs: [torch.stack(outs) + wrong], lambda images: images)
    if wrong:
        with pytest.raises(ExportError, match=r"from float64: PyTorch [45]\.\de-04, the export [12]\.\de-03"):
            export(network, target, out, sizes=SIZES)
        return
    entry = export(network, target, out, sizes=SIZES)["checked_against_pytorch"]["sizes"][0]
    assert 3e-4 < entry["difference"] < 6e-4
    assert entry["from_float64"] == {
        "pytorch": pytest.approx(entry["difference"], rel=1e-3),
        "export": 0.0,
    }


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupt(outs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(NETWORK, pretended(interrupt, Pair()), tmp_path / "net.xml", sizes=SIZES)
    assert not list(tmp_path.iterdir())


def test_a_wrong_name_is_refused_before_work(tmp_path):
    with pytest.raises(ExportError, match=r"a file of pretended ends in \.xml, got .*net\.onnx: name it so"):
        export(NETWORK, pretended(model=Pair()), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"there is no folder .*absent: make it"):
        export(NETWORK, pretended(model=Pair()), tmp_path / "absent" / "net.xml")


def test_the_list_of_sizes_covers_the_extremes():
    sizes = NETWORK.sizes
    assert (1, 8, 8) in sizes and (2, 8, 8) in sizes and (1, 1024, 1024) in sizes
    assert any(h % 2 and w % 2 and h != w for _, h, w in sizes)
    images = NETWORK.images(2, 5, 7)
    assert torch.equal(images, NETWORK.images(2, 5, 7)) and images.shape == (2, 3, 5, 7)
