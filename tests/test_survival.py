"""Real processes of mmdet's and mmseg's own tools that are killed, told to stop, or run out of disk.

In the end each has the weights of a run that nothing happened to, bit for bit.
"""

import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from defocus_commands.shapes.data_set import make_shapes
from tests.forked import free_port, start_program, status, wait_for
from tests.testing import assert_same_bits

pytestmark = pytest.mark.slow

DINO = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"
UPERNET = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=20, val=2, size=96, seed=0)
    return folder


def tool(framework):
    return Path(import_module(framework).__file__).parent / ".mim/tools/train.py"


def arguments(config, work_dir, shapes, *options):
    """Of a training without validation, with everything in it that draws: drop path, noised boxes, flips, order."""
    return [
        config,
        "--work-dir",
        work_dir,
        "--resume",
        "--cfg-options",
        *(f"{part}_{kind}=None" for part in ("val", "test") for kind in ("cfg", "dataloader", "evaluator")),
        f"train_dataloader.dataset.data_root={shapes}/",
        "train_dataloader.batch_size=2",
        "train_dataloader.num_workers=1",
        "default_hooks.logger.interval=1",
        "default_hooks.checkpoint.by_epoch=False",
        "randomness.seed=5",
        *options,
    ]


# Two epochs of 5 iterations in two processes.
PAIR = (
    "--launcher=pytorch",
    "train_cfg.max_epochs=2",
    "default_hooks.checkpoint.interval=6",
    "model.backbone.arch.depth=2",
    "model.backbone.drop_path_rate=0.3",
    "env_cfg.dist_cfg.backend=gloo",
    # Without it mmengine hands DDP a device id, which it refuses for a model on the CPU.
    "model_wrapper_cfg.type=MMDistributedDataParallel",
    "model_wrapper_cfg.device_ids=None",
)
SINGLE = (
    "train_cfg.max_iters=16",
    "model.data_preprocessor.size=(96, 96)",
    "model.backbone.net.arch.depth=2",
    "model.backbone.net.out_indices=(1,)",
    "model.backbone.net.drop_path_rate=0.3",
)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """mmdet's train.py; mmengine's launcher names a CUDA device even where there is none and gloo is asked for."""
    script = tmp_path_factory.mktemp("script") / "train_on_cpu.py"
    script.write_text(
        "import runpy, sys, torch\n"
        # For its language models mmdet imports it where it can, which takes a quarter of a trainer's start.
        "sys.modules['transformers'] = None\n"
        "torch.cuda.set_device = lambda device: None\n"
        f"runpy.run_path({str(tool('mmdet'))!r}, run_name='__main__')\n"
    )
    return script


def start(log, script, words, **environment):
    environment = {"OMP_NUM_THREADS": "1", **environment}
    return start_program([script, *words], environment, log)


def start_pair(on_cpu, work_dir, shapes):
    work_dir.mkdir(exist_ok=True)
    words = [*arguments(DINO, work_dir, shapes, *PAIR[1:]), PAIR[0]]
    place = dict(WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT=str(free_port()))
    return [start(work_dir / f"log{rank}", on_cpu, words, RANK=str(rank), **place) for rank in range(2)]


def start_single(work_dir, shapes, *options):
    work_dir.mkdir(exist_ok=True)
    words = arguments(UPERNET, work_dir, shapes, *SINGLE, *options)
    return start(work_dir / "log", tool("mmseg"), words)


def last_saved(work_dir):
    """The iteration of the last checkpoint."""
    return torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)["meta"]["iter"]


def weights(file):
    return torch.load(file, weights_only=False)["state_dict"]


@pytest.fixture(scope="module")
def unbroken_pair(on_cpu, shapes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("pair")
    for rank, process in enumerate(start_pair(on_cpu, work_dir, shapes)):
        log = work_dir / f"log{rank}"
        assert status(process, log) == 0, log.read_text()[-4000:]
    return weights(work_dir / "iter_10.pth")


@pytest.fixture(scope="module")
def unbroken_single(shapes, tmp_path_factory):
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    work_dir = tmp_path_factory.mktemp("single")
    assert status(start_single(work_dir, shapes), work_dir / "log") == 0, (work_dir / "log").read_text()[-4000:]
    return work_dir / "iter_16.pth"


def test_a_worker_of_two_agents_is_killed(on_cpu, shapes, unbroken_pair, tmp_path):
    log = tmp_path / "log"
    agents = []
    port = free_port()
    for _ in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--max-restarts=2"]
        command += ["--monitor-interval=0.1", on_cpu, *arguments(DINO, tmp_path, shapes, *PAIR[1:]), PAIR[0]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
        # torch 2.11 else gives the second round the addresses of the first, in which nobody answers any more.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with open(log, "a") as output:
            agents.append(subprocess.Popen([*map(str, command)], stdout=output, stderr=output, env=environment))
    try:
        # In the second of two epochs, with three iterations to go.
        wait_for(re.escape("Epoch(train) [2][2/5]"), log)
        (worker,) = psutil.Process(agents[1].pid).children()
        worker.send_signal(signal.SIGKILL)
        assert [agent.wait(timeout=300) for agent in agents] == [0, 0], log.read_text()[-4000:]
    finally:
        for agent in agents:
            agent.kill()
    assert "resumed epoch: 1, iter: 6" in log.read_text()
    assert_same_bits(weights(tmp_path / "iter_10.pth"), unbroken_pair)


def test_one_of_two_processes_is_told_to_stop(on_cpu, shapes, tmp_path):
    log = tmp_path / "log0"
    processes = start_pair(on_cpu, tmp_path, shapes)
    wait_for(re.escape("Epoch(train) [1][2/5]"), log)
    os.kill(processes[1].pid, signal.SIGUSR1)
    # After the same iteration: else one would wait for the other's gradients.
    assert [status(process, log) for process in processes] == [75, 75], log.read_text()[-4000:]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "interrupted.pth")
    assert 2 <= last_saved(tmp_path) < 10


def test_sigterm_as_slurm_sends_it(shapes, unbroken_single, tmp_path):
    log = tmp_path / "log"
    process = start_single(tmp_path, shapes)
    wait_for(re.escape("Iter(train) [ 3/16]"), log)
    # To the whole process group, the one that loads the data included, as torchrun passes it on.
    os.killpg(process.pid, signal.SIGTERM)
    assert status(process, log) == 75, log.read_text()[-4000:]
    found = re.search(r"Told to stop: saved (\S+) after iteration (\d+).*ends with status 75", log.read_text())
    assert found[1] == str(tmp_path / "interrupted.pth") == (tmp_path / "last_checkpoint").read_text()
    assert 3 <= int(found[2]) == last_saved(tmp_path) < 16
    assert status(start_single(tmp_path, shapes), log) == 0, log.read_text()[-4000:]
    assert_same_bits(weights(tmp_path / "iter_16.pth"), weights(unbroken_single))


@pytest.fixture
def small_disk(tmp_path, unbroken_single):
    """A file system on which one checkpoint has room and two have not, and what makes room for more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = unbroken_single.stat().st_size
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield folder, lambda: subprocess.run(["mount", "-o", f"remount,size={size * 6}", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_while_saving(shapes, small_disk, unbroken_single, tmp_path):
    work_dir, make_room = small_disk
    log = work_dir / "log"
    assert status(start_single(work_dir, shapes, "default_hooks.checkpoint.interval=6"), log) == 1
    said = (
        r"No space left on device, it takes [\d.]+ MB and [\d.]+ MB are free: make room, then resume\. What was saved "
    )
    said += rf"before is whole; this was not written: '{work_dir}/iter_12\.pth'"
    assert re.search(said, log.read_text()), log.read_text()[-4000:]
    assert sorted(path.name for path in work_dir.glob("*.pth*")) == ["iter_6.pth"]
    assert (work_dir / "last_checkpoint").read_text() == str(work_dir / "iter_6.pth") and last_saved(work_dir) == 6
    make_room()
    assert status(start_single(work_dir, shapes), log) == 0, log.read_text()[-4000:]
    assert_same_bits(weights(work_dir / "iter_16.pth"), weights(unbroken_single))
