"""Seeds, skipping, signals and files of runs that are interrupted, each by itself."""

import errno
import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from backbones.resume import (
    NumberedBatches,
    StopSignals,
    numbered_loader,
    remove_parts,
    seed_iteration,
    seed_start,
    write_whole,
)


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_what_is_drawn_depends_on_seed_rank_and_iteration_alone():
    places = [(3, 0, 7), (3, 1, 7), (3, 0, 8), (4, 0, 7)]
    drawn = []
    for place in places:
        seed_iteration(*place)
        drawn.append(draw())
    seed_start(3)
    drawn.append(draw())
    # All of Python's, of numpy's and of torch's differ.
    assert all(len(set(values)) == len(places) + 1 for values in zip(*drawn))
    seed_iteration(*places[0])
    assert draw() == drawn[0]


class Passes(Sampler):
    """0, 1, 2, 3, 4 moved on by the pass."""

    epoch = 0

    def __init__(self):
        self.begun = []

    def __iter__(self):
        self.begun.append(self.epoch)
        return iter([(index + self.epoch) % 5 for index in range(5)])

    def __len__(self):
        return 5

    def set_epoch(self, epoch):
        self.epoch = epoch


def batches(**settings):
    return NumberedBatches(BatchSampler(Passes(), 2, drop_last=False), **settings)


@pytest.mark.parametrize("skip", [0, 2, 3, 7, 12])
def test_endless_batches_begin_anywhere(skip):
    passes = [[[0, 1], [2, 3], [4]], [[1, 2], [3, 4], [0]], [[2, 3], [4, 0], [1]], [[3, 4], [0, 1], [2]]]
    truth = [batch for each in [*passes, [[4, 0], [1, 2], [3]]] for batch in each]
    some = batches(number=skip, skip=skip, endless=True)
    found = list(zip(range(skip, 15), some))
    # The first pass tells how long one is; of the others, those that are skipped as a whole are not walked through.
    assert some.sampler.begun == [0, *range(max(1, skip // 3), 5)]
    assert [list(batch) for _, batch in found] == truth[skip:]
    assert [batch.number for _, batch in found] == [number for number, _ in found]


def test_batches_of_a_pass_begin_within_it_once():
    some = batches(number=7, skip=2)
    assert [(list(batch), batch.number) for batch in some] == [([4], 7)]
    assert [(list(batch), batch.number) for batch in some] == [([0, 1], 8), ([2, 3], 9), ([4], 10)]
    assert len(some) == 3 and some.batch_size == 2 and isinstance(some.sampler, Passes)


class Draws(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, draw(), os.getpgrp(), signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("workers", [0, 1])
def test_each_batch_is_loaded_with_draws_of_its_own(workers):
    def load(number, rank=0):
        like = DataLoader(Draws(), num_workers=workers)
        loader = numbered_loader(Draws(), batches(number=number), seed=3, rank=rank, like=like, collate_fn=list)
        return next(iter(loader))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    ((first, drawn, group, blocked), (second, other, *_)) = load(4)
    assert (first, second) == (0, 1) and drawn != other
    assert load(4)[0][1] == drawn
    assert drawn not in [load(5)[0][1], load(4, rank=1)[0][1]]
    # What is drawn by loading does not disturb who draws in the same process.
    assert workers or torch.equal(torch.get_rng_state(), state)
    # A signal to the process group of the trainer passes those by that load for it.
    assert (group == os.getpgrp()) == (workers == 0)
    # One to itself reaches it.
    assert not blocked


def load_while_told_to_stop(numbered):
    """As a trainer of its own process group, all of which is sent SIGTERM in the first moment of a loading process."""
    os.setsid()
    trainer, set_num_threads = os.getpid(), torch.set_num_threads

    def tell(count):
        # torch's workers call it when they have just made SIGTERM deadly again.
        if os.getpid() != trainer:
            os.killpg(trainer, signal.SIGTERM)
        set_num_threads(count)

    torch.set_num_threads = tell
    signals, loader = StopSignals(), DataLoader(Draws(), batch_size=2, num_workers=2, collate_fn=list)
    if numbered:
        loader = numbered_loader(Draws(), batches(), seed=3, rank=0, like=loader, collate_fn=list)
    assert [[index for index, *_ in batch] for batch in loader] == [[0, 1], [2, 3], [4]]
    assert signals.received == signal.SIGTERM
    signals.received = None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == signal.SIGUSR1


def in_a_process(target, *arguments):
    """The exit status of a function in a process that is forked."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(60)
    exitcode = process.exitcode
    process.kill()
    return exitcode


@pytest.mark.parametrize("numbered", [True, False], ids=["training", "validation"])
def test_a_signal_in_the_first_moment_of_loading_processes_is_for_the_trainer_alone(numbered):
    assert in_a_process(load_while_told_to_stop, numbered) == 0


def fork_and_be_told_to_stop():
    """A trainer all of whose group is sent SIGTERM between the birth of a process and its having a group of its own."""
    os.setsid()
    signals, trainer, setpgrp = StopSignals(), os.getpid(), os.setpgrp

    def tell_then_part():
        os.killpg(trainer, signal.SIGTERM)
        setpgrp()

    os.setpgrp = tell_then_part
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    sleeping = context.Process(target=lambda: (child.send(os.getpgrp()), time.sleep(20)))
    sleeping.start()
    assert parent.poll(20) and parent.recv() == sleeping.pid
    assert signals.received == signal.SIGTERM and sleeping.is_alive()
    # What is meant for it alone ends it: the note is its trainer's.
    sleeping.terminate()
    sleeping.join(10)
    assert sleeping.exitcode == -signal.SIGTERM
    signals.restore()
    later = context.Process(target=lambda: child.send(os.getpgrp()))
    later.start()
    assert parent.poll(20) and parent.recv() == trainer


def test_what_a_trainer_forks_ends_by_its_own_signals_alone():
    assert in_a_process(fork_and_be_told_to_stop) == 0


def test_other_loaders_of_the_same_data_are_not_seeded():
    data = Draws()
    numbered_loader(data, batches(), seed=3, rank=0, like=DataLoader(data), collate_fn=list)
    plain = DataLoader(data, collate_fn=list)
    assert next(iter(plain))[0][1] != next(iter(plain))[0][1]


def test_signals_are_noted_and_given_back():
    def mine(number, frame):
        pass

    former = signal.signal(signal.SIGUSR1, mine)
    try:
        signals = StopSignals()
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGUSR1
        signals.restore()
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_in_another_thread_signals_stay_where_they_are():
    before, made = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: made.append(StopSignals()))
    thread.start()
    thread.join()
    assert made[0].received is None and signal.getsignal(signal.SIGTERM) is before


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Quota exceeded")))
        with pytest.raises(OSError, match=r"Quota exceeded, it takes 0\.0 MB and [\d.]+ MB are free: make room, then"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, memoryview(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="see to that, then resume"):
        write_whole(tmp_path / "absent" / "file", b"")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "file").write_bytes(b"whole")
    (tmp_path / "file.part").write_bytes(b"ha")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
