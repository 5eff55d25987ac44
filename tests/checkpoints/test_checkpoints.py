"""Released formats into our modules, and every way a file can be wrong."""

import json
import os
import threading
from collections import OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.checkpoints import (
    CheckpointError,
    backbone_from_checkpoint,
    load_pretrained,
    read_checkpoint,
    select_head_classes,
    weights_of,
)

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


@pytest.fixture
def model():
    return DefocusMamba(TINY)


@pytest.fixture
def classifier():
    """A classifier's weights in the released layout."""
    weights = {k: torch.randn_like(v) for k, v in DefocusMamba(TINY).state_dict().items()}
    weights = {k.replace("patch_embed.projection", "patch_embed.proj"): v for k, v in weights.items()}
    for head in ("head", "head2"):
        weights[f"{head}.0.weight"], weights[f"{head}.0.bias"] = torch.randn(192, 64), torch.randn(192)
        weights[f"{head}.2.weight"], weights[f"{head}.2.bias"] = torch.randn(50, 192), torch.randn(50)
    return weights


def assert_loaded(model, weights):
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name.replace("patch_embed.projection", "patch_embed.proj")]), name


def test_classifier_prefers_its_moving_average(model, classifier, tmp_path):
    plain = {k: torch.zeros_like(v) for k, v in classifier.items()}
    torch.save({"model": plain, "model_ema": classifier, "epoch": 3}, tmp_path / "cls.pth")
    before = {k: v.clone() for k, v in classifier.items()}
    report = load_pretrained(model, tmp_path / "cls.pth")
    assert_loaded(model, classifier)
    assert report.container == "model_ema" and report.average
    assert sorted(report.left) == sorted(k for k in classifier if k.startswith("head"))
    assert "[model_ema, a moving average]: loaded 27 tensors; left out 8: head.0.weight" in str(report)
    assert all(torch.equal(classifier[k], before[k]) for k in before)
    report = load_pretrained(model, tmp_path / "cls.pth", container="model")
    assert_loaded(model, plain)
    assert not report.average and "[model]: loaded 27" in str(report)


@pytest.mark.parametrize(
    "average, last, more",
    [
        ("state_dict_ema", "state_dict", {}),  # timm
        ("ema_state", "model", {}),  # detrex
        ("ema_state_dict", "state_dict", {}),  # YOLO-like trainers
        ("state_dict", "ema_state_dict", {"steps": torch.tensor(7)}),  # mmengine exchanges both and counts
    ],
)
def test_each_trainers_average(model, classifier, tmp_path, average, last, more):
    plain = {f"module.{k}": torch.zeros_like(v) for k, v in classifier.items()} | more
    torch.save({last: plain, average: classifier}, tmp_path / "x.pth")
    report = load_pretrained(model, tmp_path / "x.pth")
    assert_loaded(model, classifier)
    assert (report.container, report.average) == (average, True)
    report = load_pretrained(model, tmp_path / "x.pth", container=last)
    assert not report.average and not model.cls_token.any()


def test_an_average_that_was_never_begun_is_none(model, classifier, tmp_path):
    torch.save({"model": classifier, "ema_state": {}}, tmp_path / "x.pth")
    report = load_pretrained(model, tmp_path / "x.pth")
    assert_loaded(model, classifier)
    assert (report.container, report.average) == ("model", False)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w},
        lambda w: {"model": {f"anything.at.all.{k}": v for k, v in w.items()} | {"head.weight": torch.zeros(1)}},
        lambda w: {
            "state_dict": {f"_orig_mod.{k.replace('blocks.0.', 'blocks.0._orig_mod.')}": v for k, v in w.items()}
        },
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {"model_ema": {"module": w, "decay": 0.99}},
        lambda w: {"state_dict": {f"backbone.{k}": v for k, v in w.items()} | {"neck.x": torch.zeros(1)}},
        lambda w: {
            "model": {f"backbone.net.{k}": v for k, v in w.items()}
            | {"backbone.simfp_2.0.weight": torch.zeros(1), "roi_heads.box_head.fc1.weight": torch.zeros(1)}
        },
        lambda w: {
            "state_dict": {f"module.backbone.net.{k}": v for k, v in w.items()}
            | {"module.backbone.adapter.norms.0.weight": torch.zeros(1), "module.decode_head.x": torch.zeros(1)}
        },
    ],
    ids=["bare", "state_dict", "any", "compiled", "ddp", "nested average", "mmdet", "detectron2", "mmseg"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_wrapping(model, classifier, tmp_path, wrap, suffix):
    content = wrap(classifier)
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights_of(content)[0], path)
    else:
        torch.save(content, path)
    load_pretrained(model, path)
    assert_loaded(model, classifier)


@pytest.mark.parametrize("size", ["base", "large_1k", "large_21k"])
def test_released_classifier_keys_become_the_backbones(size):
    with open(f"tests/data/classifier_keys_{size}.json") as file:
        keys = json.load(file)
    weights = {k: torch.empty(v, device="meta") for k, v in keys.items()}
    kept, left = backbone_from_checkpoint(weights)
    with torch.device("meta"):
        own = DefocusMamba(size.split("_")[0]).state_dict()
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in own.items()}
    assert left == [k for k in keys if k.startswith("head")]


def test_checkpoints_of_mmengine_are_read(tmp_path, model):
    history_buffer = pytest.importorskip("mmengine.logging").HistoryBuffer
    import numpy as np

    buffer = history_buffer([1.0, 2.0], [1, 1])
    torch.save(
        {
            "state_dict": model.state_dict(),
            "message_hub": {"log_scalars": {"train/loss": buffer}, "x": np.float64(3), "y": np.int64(2)},
        },
        tmp_path / "epoch_1.pth",
    )
    content = read_checkpoint(tmp_path / "epoch_1.pth")
    assert content["message_hub"]["log_scalars"]["train/loss"].mean() == 1.5


def test_reading_forgets_nothing_that_was_known(tmp_path, model):
    """mmengine before 0.10.8 resumes only with what its integration made known, a backbone's init_cfg or not."""
    history_buffer = pytest.importorskip("mmengine.logging").HistoryBuffer
    torch.save({"state_dict": model.state_dict(), "loss": history_buffer([1.0], [1])}, tmp_path / "epoch_1.pth")
    load_pretrained(model, tmp_path / "epoch_1.pth")
    assert torch.load(tmp_path / "epoch_1.pth")["loss"].mean() == 1.0


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


class Getattr:
    """Looks up an attribute where it is unpickled."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_only_mmengines_history_may_look_up_its_methods(tmp_path):
    history_buffer = pytest.importorskip("mmengine.logging").HistoryBuffer
    # mmengine's own files do this, with "mean" and the like.
    torch.save({"x": Getattr(history_buffer, "mean")}, tmp_path / "good.pth")
    assert read_checkpoint(tmp_path / "good.pth")["x"] is history_buffer.mean
    # What leads from a class to the rest of the interpreter.
    for owner, name in (
        (OrderedDict, "fromkeys"),
        (history_buffer, "__subclasses__"),
        (history_buffer, "__init__"),
        (history_buffer, "_set_default_statistics"),
    ):
        torch.save({"x": torch.zeros(1), "extra": Getattr(owner, name)}, tmp_path / "evil.pth")
        with pytest.raises(CheckpointError, match=rf"could run code .*{name}"):
            read_checkpoint(tmp_path / "evil.pth")


def test_files_that_cannot_be_used(model, classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": classifier}, "good.pth")
    data = Path("good.pth").read_bytes()
    Path("cut.pth").write_bytes(data[: len(data) // 2])
    Path("text.pth").write_text("<html>not found</html>")
    Path("empty.pth").touch()
    Path("cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    torch.save(torch.zeros(3), "tensor.pth")
    torch.save({"epoch": 3}, "none.pth")
    torch.save({"model": classifier, "extra": Evil()}, "evil.pth")
    torch.save({"model": {k: v[..., :1] if k == "cls_token" else v for k, v in classifier.items()}}, "shape.pth")
    torch.save({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)}, "resnet.pth")
    torch.save({}, "nothing.pth")
    broken = dict(classifier)
    # One value is enough.
    for name, position, value in (("blocks.1.mixer.D", 127, torch.inf), ("norm.weight", 0, torch.nan)):
        broken[name] = broken[name].clone()
        broken[name][position] = value
    torch.save({"model": broken}, "nan.pth")
    torch.save({f"{who}.backbone.{k}": v for who in ("student", "teacher") for k, v in classifier.items()}, "two.pth")
    torch.save(DefocusMamba({**TINY, "depth": 3}).state_dict(), "deeper.pth")
    torch.save(DefocusViT(dict(embed_dims=64, depth=1, num_heads=2, mlp_ratio=3.0)).state_dict(), "vit.pth")
    sizes = dict(embed_dims=64, depth=1, num_heads=4, value_dims=96, ffn_dims=40)
    torch.save(DefocusRetNet(sizes).state_dict(), "retnet.pth")
    os.mkdir("folder")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name, message in {
        "absent.pth": "absent.pth does not exist",
        "folder": "is a folder",
        "empty.pth": "is empty",
        "cut.pth": "cut.pth is truncated or damaged",
        "cut.safetensors": "cut.safetensors is truncated",
        "text.pth": "text.pth is no checkpoint",
        "tensor.pth": "holds a Tensor, not a dict",
        "none.pth": "holds no weights; its keys are epoch",
        "evil.pth": "evil.pth holds more than weights.*could run code",
        "shape.pth": r"shape.pth does not fit DefocusMamba: .*cls_token \(1, 1, 1\) in the file, \(1, 1, 64\) in the",
        "resnet.pth": "there is no De-focus backbone .* first names: conv1.weight, fc.weight",
        "nothing.pth": "holds an empty dict: nothing was saved",
        "nan.pth": "2 of 27 weights are NaN or infinite: blocks.1.mixer.D, norm.weight. The training diverged",
        "two.pth": r"two.pth: there are 2 under 'student.backbone.' and 'teacher.backbone.': say which by prefix=",
        "deeper.pth": "holds a DefocusMamba with embed_dims=64, depth=3, inner_dims=128, state_dims=16, dt_rank=4",
        "vit.pth": "holds a DefocusViT with embed_dims=64, depth=1, num_heads=2, mlp_ratio=3.0",
        "retnet.pth": "holds a DefocusRetNet with .*num_heads=4, value_dims=96, ffn_dims=40",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(model, name)
    assert not os.path.exists("pwned")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(CheckpointError, match="no 'ema'; its keys are model"):
        load_pretrained(model, "good.pth", container="ema")
    with pytest.raises(CheckpointError, match=r"no De-focus backbone under 'neck\.'; there is one under ''"):
        load_pretrained(model, "good.pth", prefix="neck")
    load_pretrained(model, "two.pth", prefix="teacher.backbone")
    assert_loaded(model, classifier)


def test_21k_head_to_fewer_classes(classifier):
    out = select_head_classes(classifier, [7, 3, 49])
    for head in ("head", "head2"):
        assert torch.equal(out[f"{head}.2.weight"], classifier[f"{head}.2.weight"][[7, 3, 49]])
        assert torch.equal(out[f"{head}.2.bias"], classifier[f"{head}.2.bias"][[7, 3, 49]])
        assert out[f"{head}.0.weight"] is classifier[f"{head}.0.weight"]
    assert classifier["head.2.weight"].shape == (50, 192)
    with pytest.raises(CheckpointError, match=r"classes 0\.\.49; the map asks for 50"):
        select_head_classes(classifier, [0, 50])
    with pytest.raises(CheckpointError, match="no classification head"):
        select_head_classes({"norm.weight": torch.zeros(1)}, [0])


@pytest.fixture
def server(tmp_path):
    """The address of a web server over a folder, which is its second item."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def test_downloads_of_one_name_are_told_apart_and_kept(server, tmp_path, monkeypatch):
    address, folder = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for i, name in enumerate("ab"):
        (folder / name).mkdir()
        torch.save({"x": torch.tensor(i)}, folder / name / "model.pth")
    for i, name in enumerate("ab"):
        assert read_checkpoint(f"{address}/{name}/model.pth")["x"] == i
    assert read_checkpoint(f"{address}/a/model.pth?version=2")["x"] == 0
    (folder / "a/model.pth").unlink()
    assert read_checkpoint(f"{address}/a/model.pth")["x"] == 0
    with pytest.raises(CheckpointError, match=r"c/model\.pth could not be downloaded .*404.*fetch it by hand"):
        read_checkpoint(f"{address}/c/model.pth")


def test_a_download_that_cannot_be_kept(server, tmp_path, monkeypatch):
    address, folder = server
    torch.save({"x": torch.tensor(1)}, folder / "model.pth")
    # A file where the folder should be: no one, not even root, can write below it.
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be kept in .*: set TORCH_HOME to a writable folder"):
        read_checkpoint(f"{address}/model.pth")


def test_an_empty_class_map_makes_no_head(classifier):
    with pytest.raises(CheckpointError, match="class map is empty"):
        select_head_classes(classifier, [])
