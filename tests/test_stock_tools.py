"""mmdet's own tools on our configs and a few drawn images: training, resuming, scoring, inference."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")
import mmdet

from defocus_commands.shapes.data_set import make_shapes
from tests.forked import free_port
from tests.stock_tools import run_command, run_script, try_scripts

pytestmark = pytest.mark.slow

TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"
CONFIG = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=12, val=4, size=112, seed=0)
    return folder


def options(shapes, epochs):
    return [
        "--cfg-options",
        f"train_dataloader.dataset.data_root={shapes}/",
        f"val_dataloader.dataset.data_root={shapes}/",
        f"test_dataloader.dataset.data_root={shapes}/",
        f"val_evaluator.ann_file={shapes}/annotations/instances_val.json",
        f"test_evaluator.ann_file={shapes}/annotations/instances_val.json",
        "train_dataloader.batch_size=4",
        "default_hooks.logger.interval=1",
        "train_cfg.val_interval=1",
        f"train_cfg.max_epochs={epochs}",
    ]


def losses(work_dir):
    found = []
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        found += [entry for line in log.open() if "loss" in (entry := json.loads(line))]
    return found


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """One epoch, and a second one as a resumed run."""
    work_dir = tmp_path_factory.mktemp("work")
    run_command(TOOLS / "train.py", CONFIG, "--work-dir", work_dir, *options(shapes, 1))
    output = run_script(TOOLS / "train.py", CONFIG, "--work-dir", work_dir, "--resume", *options(shapes, 2))
    return work_dir, output


def test_train_and_resume(trained):
    work_dir, output = trained
    assert "resumed epoch: 1, iter: 3" in output
    entries = losses(work_dir)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert all(0 < entry["loss"] < 200 and entry["grad_norm"] > 0 for entry in entries)


def test_every_parameter_of_the_backbone_moved(trained, shapes):
    from mmdet.apis import init_detector

    work_dir, _ = trained
    first, last = (torch.load(work_dir / f"epoch_{i}.pth", weights_only=False)["state_dict"] for i in (1, 2))
    for name in first:
        # The class token comes last in the sequence: no image token sees it.
        if name.startswith(("backbone.", "neck.")) and name != "backbone.cls_token":
            assert not torch.equal(first[name], last[name]), name
    model = init_detector(CONFIG, str(work_dir / "epoch_2.pth"), device="cpu")
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())


def test_scores_by_coco_metrics(trained, shapes, tmp_path):
    work_dir, _ = trained
    prefix = tmp_path / "predictions"
    output = run_script(
        TOOLS / "test.py",
        CONFIG,
        work_dir / "epoch_2.pth",
        "--work-dir",
        tmp_path,
        *options(shapes, 2),
        f"test_evaluator.outfile_prefix={prefix}",
    )
    printed = float(re.search(r"coco/bbox_mAP: ([\d.]+)", output)[1])
    # COCO's own evaluation of the file that was written gives the printed figure.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(f"{shapes}/annotations/instances_val.json")
    evaluation = COCOeval(truth, truth.loadRes(f"{prefix}.bbox.json"), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert printed == pytest.approx(evaluation.stats[0], abs=2e-3)


def test_inferencer_on_a_jpeg(trained, shapes, tmp_path):
    from mmdet.apis import DetInferencer

    work_dir, _ = trained
    inferencer = DetInferencer(CONFIG, str(work_dir / "epoch_2.pth"), device="cpu", show_progress=False)
    image = next((shapes / "val").glob("*.jpg"))
    result = inferencer(str(image), out_dir=str(tmp_path), pred_score_thr=0.0)["predictions"][0]
    assert len(result["bboxes"]) == len(result["scores"]) == 50
    assert (tmp_path / "vis" / image.name).stat().st_size > 0


def test_flags_of_training(shapes, tmp_path):
    # mmengine refuses --amp without an accelerator, though its autocast and scaler run on a CPU too.
    script = tmp_path / "train_on_cpu.py"
    script.write_text(
        "import runpy\n"
        "import mmengine.optim.optimizer.amp_optimizer_wrapper as amp\n"
        "amp.is_cuda_available = lambda: True\n"
        f"runpy.run_path({str(TOOLS / 'train.py')!r}, run_name='__main__')\n"
    )
    flags = ["--amp", "--auto-scale-lr", "--work-dir", tmp_path]
    output = run_script(script, CONFIG, *flags, *options(shapes, 1), "optim_wrapper.dtype=bfloat16")
    # Batches of 4 where the config was made for 2: twice its rate, of which the warm-up's first step takes a hundredth.
    assert "Scaling the original LR by 2.0" in output
    entries = losses(tmp_path)
    assert len(entries) == 3 and all(0 < entry["loss"] < 200 for entry in entries)
    assert entries[0]["lr"] == pytest.approx(2 * 8e-4 * 0.01)
    assert "AmpOptimWrapper" in next(tmp_path.glob("*/vis_data/config.py")).read_text()


def test_flags_of_testing(trained, shapes, tmp_path):
    import pickle

    from PIL import Image

    work_dir, _ = trained
    flags = ["--tta", "--out", tmp_path / "out.pkl", "--show-dir", tmp_path / "shown", "--work-dir", tmp_path]
    output = run_script(TOOLS / "test.py", CONFIG, work_dir / "epoch_2.pth", *flags, *options(shapes, 2))
    assert "coco/bbox_mAP" in output
    dumped = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert len(dumped) == 4 and all(len(sample["pred_instances"]["bboxes"]) > 0 for sample in dumped)
    # Ground truth beside predictions.
    shown = {path.name: Image.open(path).size for path in (tmp_path / "shown").glob("*.jpg")}
    sizes = {path.name: Image.open(path).size for path in (shapes / "val").glob("*.jpg")}
    assert shown == {name: (2 * width, height) for name, (width, height) in sizes.items()}


def test_any_coco_json_needs_its_folder_alone(shapes, tmp_path):
    config = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-1500it_any-coco-json.py"
    short = [f"data_root={shapes}", "start_from=None", "train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    short += ["default_hooks.logger.interval=1", "default_hooks.checkpoint.interval=2"]
    output = run_script(TOOLS / "train.py", config, "--work-dir", tmp_path, "--cfg-options", *short)
    assert "6 classes (circle, square, triangle, star, ring, cross)" in output and "coco/bbox_mAP" in output
    assert [entry["step"] for entry in losses(tmp_path)] == [1, 2]
    output = run_script(
        TOOLS / "test.py", config, tmp_path / "iter_2.pth", "--work-dir", tmp_path, "--cfg-options", *short
    )
    assert "coco/bbox_mAP" in output


def test_two_processes(shapes, tmp_path):
    # mmengine's launcher names a CUDA device even where there is none and gloo is asked for.
    script = tmp_path / "train_on_cpu.py"
    script.write_text(
        "import runpy, torch\n"
        "torch.cuda.set_device = lambda device: None\n"
        f"runpy.run_path({str(TOOLS / 'train.py')!r}, run_name='__main__')\n"
    )
    command = [script, CONFIG, "--launcher=pytorch", "--work-dir", tmp_path, *options(shapes, 1)]
    command += [
        "env_cfg.dist_cfg.backend=gloo",
        # Without it mmengine hands DDP a device id, which it refuses for a model on the CPU.
        "model_wrapper_cfg.type=MMDistributedDataParallel",
        "model_wrapper_cfg.device_ids=None",
        "train_dataloader.batch_size=2",
    ]
    # What torch's launcher says to each of them; tests/test_survival.py has the launcher itself.
    place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    results = try_scripts([command] * 2, [place | dict(RANK=rank, LOCAL_RANK=rank) for rank in "01"])
    assert [status for status, _ in results] == [0, 0], results
    assert [entry["step"] for entry in losses(tmp_path)] == [1, 2, 3]
