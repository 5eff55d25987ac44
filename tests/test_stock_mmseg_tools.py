"""mmseg's own tools on a tiny config and a few drawn images: training, a kill, resuming, scoring, two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")
import mmseg
from PIL import Image

from defocus_commands.shapes.data_set import make_shapes
from tests.forked import free_port
from tests.stock_tools import ENVIRONMENT, run_script, try_script, try_scripts

pytestmark = pytest.mark.slow

TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"
CONFIG = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=8, val=3, size=96, seed=0)
    return folder


def options(shapes, iterations):
    return [
        "--cfg-options",
        *(f"{split}_dataloader.dataset.data_root={shapes}/" for split in ("train", "val", "test")),
        "train_dataloader.batch_size=2",
        "model.data_preprocessor.size=(96, 96)",
        "default_hooks.logger.interval=1",
        "default_hooks.checkpoint.interval=2",
        f"train_cfg.val_interval={iterations}",
        f"train_cfg.max_iters={iterations}",
        "default_hooks.visualization.interval=1",
    ]


def losses(work_dir):
    found = {}
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in log.open():
            if "loss" in (entry := json.loads(line)):
                found[entry["step"]] = entry["loss"]
    return found


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Killed after the checkpoint of iteration 2, resumed to iteration 4."""
    work_dir = tmp_path_factory.mktemp("work")
    command = [sys.executable, TOOLS / "train.py", CONFIG, "--work-dir", work_dir]
    process = subprocess.Popen(
        [*map(str, command), *options(shapes, 1000)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # The file that names the checkpoint is written after the checkpoint itself.
    while not (work_dir / "last_checkpoint").exists():
        assert process.poll() is None, "training ended before its first checkpoint"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = int(re.search(r"iter_(\d+)\.pth", (work_dir / "last_checkpoint").read_text())[1])
    output = run_script(TOOLS / "train.py", CONFIG, "--work-dir", work_dir, "--resume", *options(shapes, reached + 2))
    return work_dir, output, reached


def test_goes_on_after_a_kill(trained):
    work_dir, output, reached = trained
    assert f"iter: {reached}" in output
    found = losses(work_dir)
    assert set(found) >= set(range(1, reached + 3))
    assert all(0 < loss < 50 for loss in found.values())


def test_scores_are_those_of_the_predictions_it_writes(trained, shapes, tmp_path):
    work_dir, _, reached = trained
    checkpoint = work_dir / f"iter_{reached + 2}.pth"
    out = tmp_path / "predictions"
    output = run_script(
        TOOLS / "test.py", CONFIG, checkpoint, "--work-dir", tmp_path, "--out", out, *options(shapes, 4)
    )
    printed = float(re.search(r"aAcc: ([\d.]+)", output)[1])
    right = total = 0
    for path in sorted((shapes / "semantic/val").glob("*.png")):
        truth, prediction = np.asarray(Image.open(path)), np.asarray(Image.open(out / path.name))
        right, total = right + (truth == prediction).sum(), total + truth.size
    assert printed == pytest.approx(100 * right / total, abs=0.01)


def test_sliding_window_and_augmented_tests_run(trained, shapes, tmp_path):
    work_dir, _, reached = trained
    slide = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=(64, 64)", "model.test_cfg.stride=(40, 40)"]
    test = [TOOLS / "test.py", CONFIG, work_dir / f"iter_{reached + 2}.pth", "--work-dir", tmp_path]
    assert "mIoU" in run_script(*test, *options(shapes, 4), *slide)
    assert "mIoU" in run_script(*test, "--tta", *options(shapes, 4))


def test_a_wrong_label_map_is_refused_before_training(shapes, tmp_path):
    too_few = ["model.decode_head.num_classes=4", "model.auxiliary_head.num_classes=4"]
    status, output = try_script(TOOLS / "train.py", CONFIG, "--work-dir", tmp_path, *options(shapes, 2), *too_few)
    assert status != 0 and re.search(r"holds labels \[.*\], the head knows 0 to 3", output)
    assert not losses(tmp_path)


def test_bf16(shapes, tmp_path):
    run_script(
        TOOLS / "train.py", CONFIG, "--work-dir", tmp_path, *options(shapes, 2), "optim_wrapper.type=Bf16OptimWrapper"
    )
    found = losses(tmp_path)
    assert sorted(found) == [1, 2] and all(0 < loss < 50 for loss in found.values())


def test_flags(trained, shapes, tmp_path):
    # mmengine refuses --amp without an accelerator, though its autocast and scaler run on a CPU too.
    script = tmp_path / "train_on_cpu.py"
    script.write_text(
        "import runpy\n"
        "import mmengine.optim.optimizer.amp_optimizer_wrapper as amp\n"
        "amp.is_cuda_available = lambda: True\n"
        f"runpy.run_path({str(TOOLS / 'train.py')!r}, run_name='__main__')\n"
    )
    run_script(script, CONFIG, "--amp", "--work-dir", tmp_path, *options(shapes, 2), "optim_wrapper.dtype=bfloat16")
    assert sorted(losses(tmp_path)) == [1, 2]
    work_dir, _, reached = trained
    test = [TOOLS / "test.py", CONFIG, work_dir / f"iter_{reached + 2}.pth", "--work-dir", tmp_path]
    run_script(*test, "--show-dir", tmp_path / "shown", *options(shapes, 4))
    # Ground truth beside predictions.
    shown = {path.name: Image.open(path).size for path in (tmp_path / "shown").rglob("vis_image/*.png")}
    sizes = [Image.open(path).size for path in sorted((shapes / "val").glob("*.jpg"))]
    # OneDL's mmseg numbers the images, 1.2.2 has 0 for each.
    numbers = range(1, 4) if mmseg.__version__ != "1.2.2" else [0] * 3
    names = [f"test_{i:06}.jpg_{number}.png" for i, number in enumerate(numbers, start=1)]
    assert shown == {name: (2 * w, h) for name, (w, h) in zip(names, sizes, strict=True)}


def test_two_processes(shapes, tmp_path):
    # mmengine's launcher names a CUDA device even where there is none and gloo is asked for.
    script = tmp_path / "train_on_cpu.py"
    script.write_text(
        "import runpy, torch\n"
        "torch.cuda.set_device = lambda device: None\n"
        f"runpy.run_path({str(TOOLS / 'train.py')!r}, run_name='__main__')\n"
    )
    command = [script, CONFIG, "--launcher=pytorch", "--work-dir", tmp_path, *options(shapes, 3)]
    command += [
        "env_cfg.dist_cfg.backend=gloo",
        # Without it mmengine hands DDP a device id, which it refuses for a model on the CPU.
        "model_wrapper_cfg.type=MMDistributedDataParallel",
        "model_wrapper_cfg.device_ids=None",
    ]
    # What torch's launcher says to each of them.
    place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    results = try_scripts([command] * 2, [place | dict(RANK=rank, LOCAL_RANK=rank) for rank in "01"])
    assert [status for status, _ in results] == [0, 0], results
    assert sorted(losses(tmp_path)) == [1, 2, 3]
