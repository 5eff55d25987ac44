"""Detectron2's trainers under `tools/train_detectron2.py`, killed and told to stop: the weights of an unbroken run."""

import errno
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.data import MapDataset, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from torch import nn

from backbones.integrations.detectron2.resume import WholeFileCheckpointer, place_loader
from defocus_commands.shapes.data_set import make_shapes
from tests.forked import free_port, start_program, status, wait_for
from tests.testing import assert_same_bits

RUNNER = Path("tools/train_detectron2.py").resolve()
CONFIGS = Path("detectron2_projects/rcnn/configs").resolve()
MASK_RCNN = CONFIGS / "shapes/mask_rcnn_defocus_mamba_tiny.py"
YAML = CONFIGS / "custom/faster_rcnn_defocus_mamba_tiny.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, train=8, val=2, size=96, seed=0)


def lazy(work_dir, shapes, *options):
    """8 iterations, with everything in them that draws: drop path, sampled boxes, flips, order, a loading process."""
    return [
        "--config-file",
        MASK_RCNN,
        "--resume",
        *options,
        f"data.root={shapes}",
        f"train.output_dir={work_dir}",
        "+train.seed=3",
        "train.max_iter=8",
        "train.log_period=1",
        "train.eval_period=0",
        "train.checkpointer.period=5",
        "model.backbone.net.arch.depth=2",
        "+model.backbone.net.drop_path_rate=0.3",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=1",
        "dataloader.test.num_workers=0",
    ]


def yaml(work_dir, shapes):
    return [
        "--config-file",
        YAML,
        "--resume",
        *("--dataset", f"shapes_train={shapes}/annotations/instances_train.json:{shapes}/train"),
        *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", work_dir),
        *("INPUT.MIN_SIZE_TRAIN", "(80, 96)", "INPUT.MAX_SIZE_TRAIN", "128"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "6", "SOLVER.MAX_ITER", "8", "SOLVER.IMS_PER_BATCH", "2", "SEED", "3"),
        *("SOLVER.CHECKPOINT_PERIOD", "5", "DATALOADER.NUM_WORKERS", "1"),
    ]


def environment():
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}


def start(work_dir, words, program=RUNNER, **more):
    log = work_dir.parent / f"{work_dir.name}.log{more.get('RANK', '')}"
    return start_program([program, *words], {**environment(), **more}, log), log


def start_pair(work_dir, shapes):
    """As torchrun starts two."""
    place = dict(WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", TORCHELASTIC_RUN_ID="pair")
    place |= dict(MASTER_ADDR="localhost", MASTER_PORT=str(free_port()))
    return [start(work_dir, lazy(work_dir, shapes), RANK=str(rank), **place) for rank in range(2)]


def weights(work_dir):
    return torch.load(work_dir / "model_final.pth", weights_only=False)["model"]


@pytest.fixture(scope="module")
def unbroken_pair(shapes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("pair")
    for process, log in start_pair(work_dir, shapes):
        assert status(process, log) == 0, log.read_text()[-4000:]
    return weights(work_dir)


@pytest.fixture
def told_at_once(tmp_path):
    """The runner, all of whose process group is sent SIGTERM in the first moment of the process that loads its data."""
    script = tmp_path / "told_at_once.py"
    script.write_text(
        "import os, runpy, signal, torch\n"
        "trainer, set_num_threads = os.getpid(), torch.set_num_threads\n"
        "def tell(count):\n"
        "    if os.getpid() != trainer:\n"
        "        os.killpg(trainer, signal.SIGTERM)\n"
        "    set_num_threads(count)\n"
        "torch.set_num_threads = tell\n"
        f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')\n"
    )
    return script


@pytest.mark.slow
@pytest.mark.parametrize("words", [lazy, yaml], ids=["lazy", "yaml"])
def test_sigterm_as_slurm_sends_it(words, shapes, told_at_once, tmp_path):
    unbroken, work_dir = tmp_path / "unbroken", tmp_path / "run"
    process, log = start(unbroken, words(unbroken, shapes))
    assert status(process, log) == 0, log.read_text()[-4000:]
    if words is lazy:
        process, log = start(work_dir, words(work_dir, shapes))
        wait_for(r"iter: 2 ", log)
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process, log = start(work_dir, words(work_dir, shapes), told_at_once)
    assert status(process, log) == 75, log.read_text()[-4000:]
    assert "Told to stop: saved interrupted.pth after iteration" in log.read_text()
    assert (work_dir / "last_checkpoint").read_text() == "interrupted.pth"
    process, log = start(work_dir, words(work_dir, shapes))
    assert status(process, log) == 0, log.read_text()[-4000:]
    assert_same_bits(weights(work_dir), weights(unbroken))
    assert not (work_dir / "interrupted.pth").exists()


@pytest.mark.slow
def test_a_worker_of_two_agents_is_killed(shapes, unbroken_pair, tmp_path):
    log = tmp_path / "log"
    agents = []
    port = free_port()
    for _ in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--max-restarts=2"]
        command += ["--monitor-interval=0.1", RUNNER, *lazy(tmp_path, shapes)]
        # torch 2.11 else gives the second round the addresses of the first, in which nobody answers any more.
        settings = {**os.environ, **environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with open(log, "a") as output:
            agents.append(subprocess.Popen([*map(str, command)], stdout=output, stderr=output, env=settings))
    try:
        wait_for(r"iter: 5 ", log)
        (worker,) = psutil.Process(agents[1].pid).children()
        worker.send_signal(signal.SIGKILL)
        assert [agent.wait(timeout=300) for agent in agents] == [0, 0], log.read_text()[-4000:]
    finally:
        for agent in agents:
            agent.kill()
    assert "Starting training from iteration 5" in log.read_text()
    assert_same_bits(weights(tmp_path), unbroken_pair)


@pytest.mark.slow
def test_processes_of_the_runner_are_told_to_stop(shapes, unbroken_pair, tmp_path):
    words = lazy(tmp_path, shapes, "--num-gpus", "2", "--dist-url", "auto")
    command = [sys.executable, *map(str, (RUNNER, *words))]
    log = tmp_path / "stdout"
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment()})
    wait_for(r"iter: 2 ", log)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=300) == 75, log.read_text()[-4000:]
    for process, log in start_pair(tmp_path, shapes):
        assert status(process, log) == 0, log.read_text()[-4000:]
    assert_same_bits(weights(tmp_path), unbroken_pair)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpointer = WholeFileCheckpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("interrupted", iteration=1)
    checkpointer.save("model_0000002", iteration=2)
    truth = checkpointer.model.state_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000002.pth"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(OSError, match=r"No space left on device, it takes .* make room, then resume\."):
            checkpointer.save("model_0000003", iteration=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000002.pth"]
    again = WholeFileCheckpointer(nn.Linear(2, 2), str(tmp_path))
    assert again.resume_or_load("")["iteration"] == 2
    assert all(torch.equal(value, truth[name]) for name, value in again.model.state_dict().items())


def records():
    generator = random.Random(0)
    return [dict(width=generator.choice((3, 4, 5)), height=4, index=index) for index in range(9)]


@pytest.mark.parametrize("collate", [None, tuple], ids=["list", "collated"])
@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "by aspect"])
def test_a_placed_loader_gives_detectron2s_batches_from_where_it_begins(grouped, collate):
    loaded = []

    def make():
        sampler = TrainingSampler(9, seed=3)
        settings = dict(mapper=lambda record: loaded.append(record["index"]) or record, sampler=sampler)
        return build_detection_train_loader(
            records(), total_batch_size=2, aspect_ratio_grouping=grouped, collate_fn=collate, **settings
        )

    truth = [batch for _, batch in zip(range(12), make())]
    loaded.clear()
    found = [batch for _, batch in zip(range(7), place_loader(make(), seed=3, start=5))]
    assert found == truth[5:] and type(found[0]) is (collate or list)
    assert loaded == [record["index"] for batch in truth[5:] for record in batch]


def test_a_loader_that_cannot_be_placed_is_said_and_left_alone(caplog):
    loader = [MapDataset([1], None)]
    with caplog.at_level(logging.WARNING, logger="detectron2.defocus"):
        assert place_loader(loader, seed=3, start=5) is loader
    assert "a loader of list cannot be told where to begin" in caplog.text
