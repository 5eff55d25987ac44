import pytest
import torch
import torch.nn.functional as F

from backbones import AdaptedBackbone, DefocusMamba, TapPyramid
from backbones.adapters import tap_indices

ARCH = dict(embed_dims=48, inner_dims=64, depth=4, dt_rank=4)


def test_taps_are_evenly_spaced():
    assert tap_indices(24) == (5, 11, 17, 23)
    assert tap_indices(12) == (2, 5, 8, 11)
    assert tap_indices(6) == (0, 2, 3, 5)
    assert tap_indices(4) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="taps must be 1 to 3"):
        tap_indices(3)


@pytest.mark.parametrize("out_channels, num_outs", [(None, 4), (32, 5)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_scales(size, out_channels, num_outs):
    adapter = TapPyramid(16, out_channels, num_outs)
    outs = adapter([torch.randn(2, 16, *size) for _ in range(4)])
    h, w = size
    half = (max(h // 2, 1), max(w // 2, 1))
    sides = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), half, tuple(-(-side // 2) for side in half)]
    assert [tuple(out.shape) for out in outs] == [(2, out_channels or 16, *s) for s in sides[:num_outs]]
    assert adapter.out_channels == tuple(out.shape[1] for out in outs)
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None for p in adapter.parameters())


def test_equals_the_pyramid_written_out():
    adapter = TapPyramid(6, 5, 5).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    taps = [torch.randn(2, 6, 3, 5, dtype=torch.float64) for _ in range(4)]
    w = dict(adapter.named_parameters())

    def norm(name, x):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def double(name, x):
        """Each pixel becomes four."""
        b, _, h, v = x.shape
        pixels = torch.einsum("bcyx,cdij->bdyixj", x, w[f"{name}.weight"]).reshape(b, -1, 2 * h, 2 * v)
        return pixels + w[f"{name}.bias"][:, None, None]

    a, b, c, d = (norm(f"norms.{i}", tap) for i, tap in enumerate(taps))
    a = norm("resamples.0.1", double("resamples.0.0", a))
    a = double("resamples.0.3", a * (1 + torch.erf(a / 2**0.5)) / 2)
    # Of a max-pool of 2, the odd row and column are left out.
    d = d[..., :2, :4].unflatten(3, (2, 2)).unflatten(2, (1, 2)).amax((3, 5))
    expected = []
    for i, x in enumerate((a, double("resamples.1", b), c, d)):
        x = norm(
            f"projections.{i}.0.norm_layer", torch.einsum("bcyx,dcij->bdyx", x, w[f"projections.{i}.0.conv.weight"])
        )
        x = F.conv2d(x, w[f"projections.{i}.1.conv.weight"], padding=1)
        expected.append(norm(f"projections.{i}.1.norm_layer", x))
    expected.append(expected[-1][..., ::2, ::2])
    for out, truth in zip(adapter(taps), expected, strict=True):
        torch.testing.assert_close(out, truth)


def test_each_scale_comes_from_its_own_tap():
    adapter = TapPyramid(16)
    taps = [torch.randn(1, 16, 4, 4) for _ in range(4)]
    before = adapter(taps)
    for i in range(4):
        changed = [tap + (j == i) * torch.randn(1, 16, 4, 4) for j, tap in enumerate(taps)]
        assert [not torch.equal(a, b) for a, b in zip(before, adapter(changed))] == [j == i for j in range(4)]


@pytest.mark.parametrize("start_level", [1, 2, 3])
def test_without_the_finest_scales_the_others_are_the_same(start_level):
    """Of a pyramid of all scales those from ``start_level`` on, with as many taps."""
    whole = TapPyramid(16, 8, num_outs=5)
    part = TapPyramid(16, 8, num_outs=5 - start_level, start_level=start_level)
    kept = {}
    for name, value in whole.state_dict().items():
        kind, number, rest = name.split(".", 2)
        if int(number) >= start_level:
            kept[f"{kind}.{int(number) - start_level}.{rest}"] = value
    part.load_state_dict(kept)
    taps = [torch.randn(1, 16, 5, 7) for _ in range(4)]
    assert part.scales == whole.scales[start_level:]
    for found, expected in zip(part(taps[start_level:]), whole(taps)[start_level:], strict=True):
        assert torch.equal(found, expected)
    net = DefocusMamba(ARCH, out_indices=(0, 1, 2, 3))
    with pytest.raises(ValueError, match=rf"takes {4 - start_level} maps, the backbone gives 4"):
        AdaptedBackbone(net, TapPyramid(48, start_level=start_level))


def test_a_tap_is_normalised():
    adapter = TapPyramid(16)
    taps = [torch.randn(1, 16, 4, 4) for _ in range(4)]
    out = adapter([tap * 1000 for tap in taps])[2]
    torch.testing.assert_close(out, adapter(taps)[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(out.mean(1), torch.zeros(1, 4, 4), atol=1e-5, rtol=0)


def test_wrong_number_of_taps_is_refused_before_training():
    net = DefocusMamba(ARCH, out_indices=(1, 3))
    with pytest.raises(ValueError, match=r"takes 4 maps, the backbone gives 2 .*use out_indices=\(0, 1, 2, 3\)"):
        AdaptedBackbone(net, TapPyramid(48))
    with pytest.raises(ValueError, match="got 2: give the backbone 4"):
        TapPyramid(16)([torch.zeros(1, 16, 2, 2)] * 2)
    shallow = DefocusMamba({**ARCH, "depth": 2})
    with pytest.raises(ValueError, match="a backbone of at least 4 blocks"):
        TapPyramid.fit(shallow)


BAD = [
    dict(in_channels=[16] * 4),
    dict(in_channels=0),
    dict(in_channels=16, num_outs=3),
    dict(in_channels=16, start_level=4),
]


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="got"):
        TapPyramid(**arguments)
