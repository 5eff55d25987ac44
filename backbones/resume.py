"""What a training loop needs to go on after an interruption as if there had been none; plain PyTorch.

Nothing random is a matter of history here. Before an iteration the generators are seeded by the run's seed, the
process's rank and the iteration's number; so they are before its batch is loaded, in whatever process that happens.
What a run draws in iteration i therefore does not depend on where it started from, on validation in between, or on how
many processes load the data, and a checkpoint needs to hold no more than the seed and the number.
"""

import errno
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# What a process ends with once it was told to stop and has saved: EX_TEMPFAIL of sysexits.h, "try again later".
STATUS_INTERRUPTED = 75
# The checkpoint that it leaves, without the suffix.
INTERRUPTED = "interrupted"
# What tells a process to stop.
STOP_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}

# The streams of one iteration.
_MODEL, _DATA, _START = range(3)
# What a loader over other batches takes over from the one it replaces.
_LOADER_SETTINGS = (
    "num_workers",
    "pin_memory",
    "timeout",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


def seed_iteration(seed: int, rank: int, iteration: int) -> None:
    """Seeds the generators of Python, numpy and torch for what the model draws in an iteration of one process."""
    large = _seed_all(seed, rank, iteration, _MODEL)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(large)


def seed_start(seed: int) -> None:
    """Seeds them, alike in all processes, for what is drawn before the first iteration."""
    _seed_all(seed, 0, 0, _START)


def _seed_all(*place: int) -> int:
    small, large = np.random.SeedSequence(place).generate_state(2, np.uint64).tolist()
    random.seed(large)
    np.random.seed(small % 2**32)
    # torch.manual_seed also looks for every kind of accelerator that there might be, which takes a millisecond.
    torch.default_generator.manual_seed(large)
    return large


class NumberedBatches:
    """The batches of a batch sampler from some iteration on, each with the number of its iteration.

    What precedes is counted and left out; no data is loaded for it. Other attributes are those of the batch sampler.

    Args:
        batches: Gives lists of indices. Its order depends on its seed, and on what ``set_epoch`` told its ``sampler``.
        number: Iteration that takes the first batch.
        skip: How many batches to leave out, from the beginning of the pass that comes first.
        endless: Another pass follows when one ends, and ``skip`` may go over several. Otherwise whoever iterates
            begins the passes and calls ``set_epoch``.
    """

    def __init__(self, batches: Iterable[list[int]], number: int = 0, skip: int = 0, endless: bool = False):
        self.batches, self.number, self.skip, self.endless = batches, number, skip, endless

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def __getattr__(self, name: str):
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator["_NumberedBatch"]:
        epoch = 0
        while True:
            length = 0
            for indices in self.batches:
                length += 1
                if self.skip > 0:
                    self.skip -= 1
                    continue
                # Counted before it is handed out, for nobody may come back for more.
                self.number += 1
                yield _NumberedBatch(indices, self.number - 1)
            if not self.endless or length == 0:
                return
            passes, self.skip = divmod(self.skip, length)
            epoch += 1 + passes
            sampler = getattr(self.batches, "sampler", None)
            if sampler is not None and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)


class _NumberedBatch(list):
    """Indices, and the number of the iteration that takes what is loaded for them."""

    def __init__(self, indices: Iterable[int], number: int):
        super().__init__(indices)
        self.number = number


def numbered_loader(
    dataset: Dataset, batches: NumberedBatches, seed: int, rank: int, like: DataLoader, collate_fn: Callable
) -> DataLoader:
    """A loader that seeds the generators before each batch, by the number of the iteration that takes it.

    Args:
        dataset: Found by index. It gets an attribute ``__getitems__``, by which torch's loader reads a batch.
        batches: What to load.
        seed: The run's.
        rank: The process's.
        like: A loader whose workers, pinning and time limit are taken over.
        collate_fn: Makes a batch of a list of samples.
    """
    cast(Any, dataset).__getitems__ = partial(_load_batch, dataset, seed, rank)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_fn,
        worker_init_fn=partial(_start_worker, like.worker_init_fn),
        # Else each pass begins with a draw from the model's.
        generator=torch.Generator().manual_seed(seed),
        **{name: getattr(like, name) for name in _LOADER_SETTINGS},
    )


def _load_batch(dataset: Dataset, seed: int, rank: int, indices: list[int]) -> list:
    # Other loaders may read the same data set, without numbers.
    if not isinstance(indices, _NumberedBatch):
        return [dataset[index] for index in indices]
    # The model may draw in this process, and draws the same when another loads.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        _seed_all(seed, rank, indices.number, _DATA)
        return [dataset[index] for index in indices]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _start_worker(then: Callable[[int], None] | None, worker_id: int) -> None:
    # Where a forked worker is from its first moment on; one that is spawned is not.
    os.setpgrp()
    if then is not None:
        then(worker_id)


class StopSignals:
    """Takes note of SIGTERM and SIGUSR1 instead of dying of them; a second one changes nothing.

    Processes that are forked meanwhile, such as those that load data, get groups of their own and die of these signals
    as usual. torchrun passes a signal on to the process group of each trainer: a worker that died of it would take the
    trainer along before that has saved.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        # Only there does Python let a program handle signals.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            _noting.append(self)

    def _note(self, number: int, _frame) -> None:
        self.received = self.received or signal.Signals(number)

    def restore(self) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}
        if self in _noting:
            _noting.remove(self)


# Those that take note of signals now.
_noting: list[StopSignals] = []


def _begin_forked() -> None:
    if not _noting:
        return
    # In this order: until a process is in a group of its own, signals to its trainer's are noted here, too, in vain.
    os.setpgrp()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _noting.clear()


os.register_at_fork(after_in_child=_begin_forked)


def write_whole(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Writes a file so that at any time, a loss of power included, its name stands for all of the old or the new one.

    Raises:
        OSError: It could not be written. What stood there is untouched; the message says what to do.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        cure = "see to that"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free
            cure = f"it takes {len(data) / 1e6:.1f} MB and {free / 1e6:.1f} MB are free: make room"
        raise OSError(
            error.errno,
            f"{error.strerror}, {cure}, then resume. What was saved before is whole; this was not written",
            str(path),
        ) from error


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes what `write_whole` left in a folder when its process was killed."""
    for part in Path(folder).glob("*.part"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
