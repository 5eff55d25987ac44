"""Runs that are interrupted, against one that is not: a small model under mmengine's own runner, in this process."""

import errno
import itertools
import logging
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

pytest.importorskip("mmengine", reason="mmengine is not installed")
from mmengine.config import Config

from tests.integrations.interrupted_runs import IMAGES, Killed, finish, interrupt, kill, make, send, weights


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    # mmengine formats its config anew for each checkpoint.
    monkeypatch.setattr(Config, "pretty_text", "")
    yield
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights and batches of a run without an interruption, made once for each of the settings."""
    cache = {}

    def run(**settings):
        key = tuple(sorted(settings.items()))
        if key not in cache:
            runner = finish(tmp_path_factory.mktemp("unbroken"), **settings)
            cache[key] = weights(runner), runner.model.seen
        return cache[key]

    return run


@pytest.mark.parametrize(
    "loop, sampler, grouped, killed_after",
    [
        ("epochs", "DefaultSampler", False, 3),
        # Saved after the last iteration of an epoch, before what belongs to the epoch's end.
        ("epochs", "DefaultSampler", False, 4),
        ("epochs", "DefaultSampler", True, 7),
        ("iterations", "InfiniteSampler", False, 7),
        ("iterations", "InfiniteSampler", True, 7),
        # In the third pass over the data.
        ("iterations", "DefaultSampler", False, 10),
        ("iterations", "DefaultSampler", True, 10),
    ],
)
def test_a_killed_run_ends_as_an_unbroken_one(loop, sampler, grouped, killed_after, unbroken, tmp_path):
    settings = dict(loop=loop, sampler=sampler, grouped=grouped)
    truth, seen = unbroken(**settings)
    interrupt(tmp_path, [(killed_after, kill)], **settings)
    runner = finish(tmp_path, **settings)
    assert torch.equal(weights(runner), truth)
    # The batches after the last checkpoint, and no image besides theirs was loaded.
    remaining = seen[killed_after // 2 * 2 :]
    assert runner.model.seen == remaining != seen[: len(remaining)]
    assert runner.train_dataloader.dataset.loaded == [index for batch in remaining for index in batch]


@pytest.mark.parametrize("loop, sampler", [("epochs", "DefaultSampler"), ("iterations", "InfiniteSampler")])
def test_loading_processes_draw_what_one_process_does(loop, sampler, unbroken, tmp_path):
    settings = dict(loop=loop, sampler=sampler)
    interrupt(tmp_path, [(3, kill)], workers=2, **settings)
    assert torch.equal(weights(finish(tmp_path, workers=2, **settings)), unbroken(**settings)[0])


def test_the_order_is_that_of_the_seed(unbroken):
    _, seen = unbroken()
    for epoch in range(3):
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3 + epoch)).tolist()
        assert [index for batch in seen[4 * epoch : 4 * epoch + 4] for index in batch] == order


def test_without_a_seed_the_first_one_is_kept(unbroken, tmp_path):
    interrupt(tmp_path, [(3, kill)], seed=None)
    seed = torch.load(tmp_path / "iter_2.pth", weights_only=False)["meta"]["seed"]
    assert torch.equal(weights(finish(tmp_path, seed=None)), unbroken(seed=seed)[0])


def test_validation_changes_nothing_and_epochs_resume_too(unbroken, tmp_path):
    settings = dict(validated=True, by_epoch=True, interval=1)
    truth, _ = unbroken(**settings)
    assert torch.equal(truth, unbroken()[0])
    interrupt(tmp_path, [(7, kill)], **settings)
    assert (tmp_path / "last_checkpoint").read_text().endswith("epoch_1.pth")
    assert torch.equal(weights(finish(tmp_path, **settings)), truth)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("loop", ["epochs", "iterations"])
def test_a_signal_leaves_a_checkpoint_and_status_75(number, loop, unbroken, tmp_path):
    settings = dict(loop=loop, by_epoch=loop == "epochs", interval=1 if loop == "epochs" else 100)
    # The signal comes between the fifth and the sixth iteration, and twice.
    act = [(5, send(number)), (5, send(number))]
    assert interrupt(tmp_path, act, raises=SystemExit, **settings).code == 75
    signal.signal(number, signal.SIG_DFL)  # as in a new process
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "interrupted.pth")
    meta = torch.load(tmp_path / "interrupted.pth", weights_only=False)["meta"]
    assert (meta["epoch"], meta["iter"]) == (1 if loop == "epochs" else 0, 6)
    places = []
    runner = make(tmp_path, at=[(7, places.append), (9, places.append)], **settings)
    runner.train()
    assert torch.equal(weights(runner), unbroken(**settings)[0])
    # Of four batches an epoch: the third of the second epoch, then the first of the third.
    assert places == ([2, 0] if loop == "epochs" else [6, 8])
    # It goes once a later one stands, and the signals are as they were.
    assert not (tmp_path / "interrupted.pth").exists()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_waits_for_the_step_of_accumulated_gradients(unbroken, tmp_path):
    settings = dict(accumulate=2, interval=100)
    interrupt(tmp_path, [(4, send(signal.SIGTERM))], raises=SystemExit, **settings)
    assert torch.load(tmp_path / "interrupted.pth", weights_only=False)["meta"]["iter"] == 6
    assert torch.equal(weights(finish(tmp_path, **settings)), unbroken(**settings)[0])


def fail(monkeypatch, function, name, error, skip=0):
    """Makes a function of `os` raise, in place of the call after ``skip`` ones that touch a file of that name."""
    original, left = getattr(os, function), itertools.count()

    def broken(*arguments):
        path = arguments[0] if function == "replace" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if os.path.basename(path) == f"{name}.part" and next(left) >= skip:
            raise error
        return original(*arguments)

    monkeypatch.setattr(os, function, broken)


def test_a_full_disk_leaves_the_last_checkpoint_whole(monkeypatch, unbroken, tmp_path):
    with monkeypatch.context() as patch:
        fail(patch, "fsync", "iter_4.pth", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        error = interrupt(tmp_path, (), raises=OSError, max_keep_ckpts=1)
    assert error.errno == errno.ENOSPC and error.filename == str(tmp_path / "iter_4.pth")
    assert "No space left on device" in str(error) and "MB are free: make room, then resume" in str(error)
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == ["iter_2.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_2.pth")
    assert torch.equal(weights(finish(tmp_path, max_keep_ckpts=1)), unbroken()[0])
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == ["iter_12.pth"]


@pytest.mark.parametrize("name, skip", [("iter_4.pth", 0), ("last_checkpoint", 1)])
def test_a_kill_while_saving_leaves_the_last_checkpoint_whole(name, skip, monkeypatch, unbroken, tmp_path):
    # Checkpoints in a folder of their own, the file that names the last one beside the logs.
    work_dir = tmp_path / "run"
    settings = dict(max_keep_ckpts=1, out_dir=str(tmp_path / "kept"))
    with monkeypatch.context() as patch:
        fail(patch, "replace", name, Killed(), skip)
        interrupt(work_dir, (), **settings)
    assert (work_dir / "last_checkpoint").read_text() == str(tmp_path / "kept/run/iter_2.pth")
    assert [path.name for path in tmp_path.rglob("*.part")] == [f"{name}.part"]
    assert torch.equal(weights(finish(work_dir, **settings)), unbroken()[0])
    assert not list(tmp_path.rglob("*.part"))


def test_the_best_checkpoint_stays_until_a_better_one_is_written(monkeypatch, tmp_path):
    settings = dict(validated=True, by_epoch=True, interval=1, save_best="score", rule="greater")
    with monkeypatch.context() as patch:
        fail(patch, "fsync", "best_score_epoch_2.pth", OSError(errno.EIO, os.strerror(errno.EIO)))
        assert "see to that, then resume" in str(interrupt(tmp_path, (), raises=OSError, **settings))
    assert [path.name for path in tmp_path.glob("best*")] == ["best_score_epoch_1.pth"]
    finish(tmp_path, **settings)
    assert [path.name for path in tmp_path.glob("best*")] == ["best_score_epoch_3.pth"]


def test_other_data_is_said_and_begins_the_epoch_anew(capsys, tmp_path):
    interrupt(tmp_path, [(7, kill)])
    runner = finish(tmp_path, batch_size=5)
    assert "a run on {'images': 10, 'processes': 1, 'batch_size': 3}, this one is on" in capsys.readouterr().out
    # Epochs 2 and 3, of two batches each.
    first, second, *others = runner.model.seen
    assert len(others) == 2 and sorted(first + second) == list(range(IMAGES))


def test_data_that_cannot_be_skipped_is_said_and_left_alone(caplog, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(2)

    runner = make(tmp_path, loop="iterations")
    loader = DataLoader(Stream())
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "ResumableCheckpointHook")
    stand_in = SimpleNamespace(train_loop=SimpleNamespace(dataloader=loader), logger=logging.getLogger("stand-in"))
    hook._place_data(stand_in)
    assert "SimpleNamespace over Stream cannot be told where to begin" in caplog.text
    assert stand_in.train_loop.dataloader is loader
