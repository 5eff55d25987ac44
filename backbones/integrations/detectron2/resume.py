"""Detectron2's trainers, for runs that are interrupted: the same weights in the end, and nothing lost on the way.

    checkpointer = WholeFileCheckpointer(model, output_dir, trainer=trainer)
    resume = ResumeHook(checkpointer, build_loader)
    trainer.register_hooks([timer, scheduler, periodic_checkpointer, resume, evaluation, writers])

`defocus train-detectron2` trains so.
"""

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from backbones.resume import (
    INTERRUPTED,
    STATUS_INTERRUPTED,
    NumberedBatches,
    StopSignals,
    numbered_loader,
    remove_parts,
    seed_iteration,
    seed_start,
    write_whole,
)

# Below Detectron2's own, whose handlers print it.
logger = logging.getLogger("detectron2.defocus")


class WholeFileCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, whose local files are written whole or not at all."""

    def save(self, name: str, **kwargs) -> None:
        """Writes ``name.pth``, then the file that names it as the last one; ``kwargs`` are saved with it."""
        if self.save_dir and self.save_to_disk and not urlparse(str(self.save_dir)).scheme:
            data = {"model": self.model.state_dict()}
            data.update((key, item.state_dict()) for key, item in self.checkpointables.items())
            buffer = io.BytesIO()
            torch.save({**data, **kwargs}, buffer)
            path = Path(self.save_dir, f"{name}.pth")
            logger.info("Saving checkpoint to %s", path)
            write_whole(path, buffer.getbuffer())
            self.tag_last_checkpoint(path.name)
            if name != INTERRUPTED:
                path.with_stem(INTERRUPTED).unlink(missing_ok=True)
        else:
            super().save(name, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes which checkpoint is the last one."""
        if urlparse(str(self.save_dir)).scheme:
            super().tag_last_checkpoint(last_filename_basename)
        else:
            write_whole(Path(self.save_dir, "last_checkpoint"), last_filename_basename.encode())


class ResumeHook(HookBase):
    """Makes a run that is resumed from any checkpoint end with the weights of one that was never interrupted.

    It goes on at the next batch, with the seed and the random numbers it would have had; skipping loads no data. On
    SIGTERM or SIGUSR1 all processes finish the iteration, save ``interrupted.pth``, and end with status 75. It stands
    after the hooks that belong to the step, and before those that evaluate (which takes long) and write metrics (which
    they cannot twice in one iteration).

    Args:
        checkpointer: What to save with. It has the trainer among its checkpointables, and with it this hook's seed.
        build_loader: Gives what Detectron2's `build_detection_train_loader` does. It is called before the first
            iteration, when the seed is known and set, and replaces the trainer's loader.
        seed: Of a run that begins; less than 0 draws one.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, build_loader: Callable[[], Iterable], seed: int = -1):
        self._checkpointer, self._build_loader = checkpointer, build_loader
        self.seed = comm.shared_random_seed() if seed < 0 else seed

    def state_dict(self) -> dict:
        """The run's seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        """Takes over the seed of the run that is resumed."""
        self.seed = state["seed"]

    def before_train(self) -> None:
        """Prepares signals and data; the checkpoint to resume from is loaded by now."""
        self._signals = StopSignals()
        if comm.is_main_process():
            remove_parts(self._checkpointer.save_dir)
        # Samplers draw their seeds when they are made.
        seed_start(self.seed)
        loader = place_loader(self._build_loader(), self.seed, self.trainer.start_iter)
        # Detectron2's DefaultTrainer has the one that takes the steps inside.
        getattr(self.trainer, "_trainer", self.trainer).reset_data_loader(lambda: loader)

    def before_step(self) -> None:
        """Seeds what the model draws."""
        seed_iteration(self.seed, comm.get_rank(), self.trainer.iter)

    def after_step(self) -> None:
        """Ends the process if any was told to stop.

        Raises:
            SystemExit: Status 75, in all processes after the same iteration, once the checkpoint is written.
        """
        if any(comm.all_gather(self._signals.received is not None)):
            self._checkpointer.save(INTERRUPTED, iteration=self.trainer.iter)
            logger.warning(
                "Told to stop: saved %s.pth after iteration %d. The same command with --resume goes on from there; "
                "this one ends with status %d.",
                INTERRUPTED,
                self.trainer.iter,
                STATUS_INTERRUPTED,
            )
            # Who ends first makes the launcher end the others.
            comm.synchronize()
            raise SystemExit(STATUS_INTERRUPTED)

    def after_train(self) -> None:
        """Gives the signals back after the last iteration; before that the process ends, and must not be killed."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._signals.restore()


def place_loader(loader: Iterable, seed: int, start: int) -> Iterable:
    """A loader of Detectron2 as one that begins at an iteration and seeds each batch.

    The images come in the order of the sampler, whatever the number of loading processes; Detectron2's own mixes those
    of several. One that was not made by `build_detection_train_loader` of a data set found by index is returned as it
    is, with a warning.

    Args:
        loader: Makes batches.
        seed: The run's.
        start: Iteration that takes the first batch.
    """
    collate, grouped = trivial_batch_collator, loader
    if not isinstance(grouped, (AspectRatioGroupedDataset, DataLoader)) and hasattr(grouped, "_map_func"):
        # A MapDataset over the batches, which collates.
        collate, grouped = loader._map_func, loader._dataset
    inner = grouped.dataset if isinstance(grouped, AspectRatioGroupedDataset) else grouped
    stream = getattr(inner, "dataset", None)
    if not isinstance(stream, ToIterableDataset) or not stream.shard_sampler:
        logger.warning(
            "A resumed run sees other data than an unbroken one: a loader of %s cannot be told where to begin",
            type(stream or loader).__name__,
        )
        return loader
    if grouped is inner:
        batches, collate = BatchSampler(stream.sampler, inner.batch_size, drop_last=True), inner.collate_fn
    else:
        batches = AspectRatioBatches(stream.dataset, stream.sampler, grouped.batch_size)
    numbered = NumberedBatches(batches, number=start, skip=start)
    return numbered_loader(stream.dataset, numbered, seed, comm.get_rank(), inner, collate)


class AspectRatioBatches:
    """Batches of wide, or of other images, as of Detectron2's `AspectRatioGroupedDataset`, before any is loaded."""

    def __init__(self, dataset: Dataset, sampler: Sampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size
        # What is mapped: dicts that say the size of an image without reading it.
        self._records = dataset._dataset if isinstance(dataset, MapDataset) else dataset

    def __iter__(self) -> Iterator[list[int]]:
        groups = ([], [])
        for index in self.sampler:
            record = self._records[index]
            group = groups[record["width"] > record["height"]]
            group.append(index)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()
