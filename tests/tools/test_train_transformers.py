"""tools/train_transformers.py from end to end, on tiny nets: scores, resumed runs, several processes."""

import contextlib
import io
import json
import os
import shutil
import signal

import pytest
import torch

pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from transformers import pipeline

from backbones.integrations.transformers_training import trainer
from defocus_commands.train_transformers import main
from defocus_eval.evaluate import evaluate
from defocus_eval.logs import read_logs
from tests.forked import free_port, start
from tests.integrations.transformers_training.tiny import BACKBONE, DEFORMABLE, MASK2FORMER, REAL_TIME, draw_some


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight images of rectangles, and their COCO file."""
    return draw_some(tmp_path_factory.mktemp("images"), 8)


def words(images, output, **told):
    settings = {
        "train_annotations": images,
        "val_annotations": images,
        "image_size": 64,
        "backbone": BACKBONE,
        "head": "rt_detr_v2",
        "head_options": REAL_TIME,
        "precision": "fp32",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": output,
    }
    line = []
    for name, value in (settings | told).items():
        line += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return line


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(folder, other, **tolerance):
    found, wanted = weights(folder), weights(other)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        if tolerance:
            torch.testing.assert_close(value, wanted[name], **tolerance)
        else:
            assert torch.equal(value, wanted[name]), name


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    """The folder of a run over an epoch of four steps, with a checkpoint in the middle and at the end."""
    folder = tmp_path_factory.mktemp("unbroken")
    told = {"save_strategy": "steps", "save_steps": 2, "layer_decay": 0.9, "augmentation": "flip"}
    assert main(words(images, folder, **told)) == 0
    return folder


def test_the_scores_are_those_of_the_file_that_is_left(images, unbroken):
    scores = json.loads((unbroken / "scores.json").read_text())["bbox"]
    assert scores == json.loads(json.dumps(evaluate(unbroken / "predictions.bbox.json", images, samples=0)["bbox"]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(images))
        official = COCOeval(truth, truth.loadRes(str(unbroken / "predictions.bbox.json")), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    assert [scores[name] for name in ("AP", "AP50", "AP75", "AR100")] == pytest.approx(official.stats[[0, 1, 2, 8]])
    log = read_logs([unbroken / trainer.LOG])
    assert list(log.losses) == [1, 2, 3, 4] and set(log.seconds) == {1, 2, 3, 4}
    assert log.evaluations[-1].scores["bbox_mAP"] == pytest.approx(scores["AP"])


def test_what_is_left_serves_a_pipeline(images, unbroken):
    detect = pipeline("object-detection", model=str(unbroken), threshold=0.0)
    found = detect(Image.open(images.parent / "0.png"))
    entries = json.loads((unbroken / "predictions.bbox.json").read_text())
    best = max((e for e in entries if e["image_id"] == 11), key=lambda e: e["score"])
    assert max(f["score"] for f in found) == pytest.approx(best["score"], abs=1e-5)
    assert {f["label"] for f in found} <= {"red", "blue"}


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(images, unbroken, tmp_path):
    shutil.copytree(unbroken / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copy(unbroken / trainer.LOG, tmp_path)
    # A run that was killed while it wrote leaves such a folder.
    (tmp_path / "checkpoint-3").mkdir()
    told = {"save_strategy": "steps", "save_steps": 2, "layer_decay": 0.9, "augmentation": "flip"}
    assert main(words(images, tmp_path, resume="true", **told)) == 0
    assert_same(tmp_path, unbroken)
    assert read_logs([tmp_path / trainer.LOG]).losses == read_logs([unbroken / trainer.LOG]).losses
    # One that was killed after its last step has to be scored alone.
    (tmp_path / "scores.json").unlink()
    assert main(words(images, tmp_path, resume="true", **told)) == 0
    assert (tmp_path / "scores.json").is_file()
    assert_same(tmp_path, unbroken)


def test_a_run_does_not_mix_with_an_earlier_one(images, unbroken, capsys):
    assert main(words(images, unbroken)) == 2
    assert "holds checkpoint-4 of an earlier run: add --resume" in capsys.readouterr().err


def test_a_signal_leaves_a_checkpoint_and_its_status(images, unbroken, tmp_path, monkeypatch):
    def stop_at_two(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    unchanged = trainer.BeginEpoch.on_step_end
    monkeypatch.setattr(trainer.BeginEpoch, "on_step_end", stop_at_two)
    told = {"layer_decay": 0.9, "augmentation": "flip"}
    assert main(words(images, tmp_path, **told)) == 75
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file() and not (tmp_path / "scores.json").exists()
    monkeypatch.setattr(trainer.BeginEpoch, "on_step_end", unchanged)
    assert main(words(images, tmp_path, resume="true", **told)) == 0
    assert_same(tmp_path, unbroken)


def test_a_trained_model_is_scored_again_and_trained_on(images, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "again", ignore=shutil.ignore_patterns("checkpoint-*", "*.json*l", "scores*"))
    assert main(words(images, tmp_path / "again", score_only="true")) == 0
    first, second = (json.loads((folder / "scores.json").read_text()) for folder in (unbroken, tmp_path / "again"))
    assert first["bbox"] == second["bbox"]
    told = {"model": unbroken, "backbone": {}, "head_options": {}, "max_steps": 1, "learning_rate": 0.0}
    assert main(words(images, tmp_path / "more", **told)) == 0
    assert_same(tmp_path / "more", unbroken, rtol=0, atol=1.0)


def test_masks_are_scored_as_masks(images, tmp_path):
    adapter = BACKBONE["adapter"] | {"num_outs": 4, "start_level": 1}
    told = {"head": "mask2former", "head_options": MASK2FORMER, "backbone": BACKBONE | {"adapter": adapter}}
    assert main(words(images, tmp_path, max_steps=1, **told)) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["segm"] == json.loads(
        json.dumps(evaluate(tmp_path / "predictions.segm.json", images, samples=0)["segm"])
    )


def test_label_maps_are_scored_by_iou(tmp_path):
    for kind in ("images", "maps"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        labels = Image.new("L", (64, 48), number % 2)
        labels.paste(2, (8, 8, 24, 40))
        labels.save(tmp_path / "maps" / f"{number}.png")
        labels.point(lambda v: 90 * v).convert("RGB").save(tmp_path / "images" / f"{number}.jpg")
    adapter = BACKBONE["adapter"] | {"num_outs": 4, "start_level": 1}
    told = {"head": "upernet", "head_options": {"hidden_size": 16, "auxiliary_channels": 16}, "max_steps": 1}
    told |= {"train_images": tmp_path / "images", "val_images": tmp_path / "images", "score_every": 1}
    assert main(words(tmp_path / "maps", tmp_path / "out", backbone=BACKBONE | {"adapter": adapter}, **told)) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["semantic"]
    # The naive count.
    pairs = []
    for number in range(4):
        found, truth = (
            torch.tensor(list(Image.open(folder / f"{number}.png").getdata()))
            for folder in (tmp_path / "out" / "predictions", tmp_path / "maps")
        )
        pairs.append((found, truth))
    found, truth = (torch.cat(parts) for parts in zip(*pairs))
    ious = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(3)]
    assert scores["mIoU"] == pytest.approx(float(sum(ious) / 3))


def _run_rank(rank, port, line, fsdp):
    """What one of two processes does, as accelerate's launcher starts it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    if fsdp:
        _let_fsdp_run_on_cpus()
    os._exit(main(line))


def _let_fsdp_run_on_cpus():
    """accelerate keeps FSDP to accelerators; torch itself does not."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    plain = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


# A head without batch norm and without noise.
SEVERAL = {"head": "deformable_detr", "head_options": DEFORMABLE, "max_steps": 3, "augmentation": "flip"}
SEVERAL |= {"layer_decay": 0.8, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(words(images, folder, **SEVERAL, per_device_train_batch_size=4)) == 0
    return folder


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_train_and_score_as_one(images, alone, tmp_path, fsdp):
    if fsdp and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        pytest.skip("the FSDP of PyTorch 2.6 asks a CPU for streams; that of 2.11 does not")
    port = free_port()
    line = words(images, tmp_path, **SEVERAL, per_device_train_batch_size=2)
    if fsdp:
        config = tmp_path / "fsdp.json"
        config.write_text(json.dumps({"transformer_layer_cls_to_wrap": ["MambaBlock"]}))
        line += ["--fsdp", "--fsdp_config", str(config)]
    processes = [start(_run_rank, rank, port, line, fsdp) for rank in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    one, two = (read_logs([folder / trainer.LOG]).losses for folder in (alone, tmp_path))
    assert two == pytest.approx(one, abs=1e-4)
    first, second = (json.loads((folder / "predictions.bbox.json").read_text()) for folder in (alone, tmp_path))
    assert sorted(entry["image_id"] for entry in first) == sorted(entry["image_id"] for entry in second)
