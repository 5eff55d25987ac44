"""mmengine's checkpoints, for runs that are interrupted: the same weights in the end, and nothing lost on the way."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from backbones.resume import (
    INTERRUPTED,
    STATUS_INTERRUPTED,
    NumberedBatches,
    StopSignals,
    numbered_loader,
    remove_parts,
    seed_iteration,
    write_whole,
)


@register_backend("whole_files")
class WholeFileBackend(LocalBackend):
    """mmengine's local files, each written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj`` to ``filepath``."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_whole(filepath, obj)


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` for runs that must survive; ``default_hooks.checkpoint.type`` is where to name it.

    - A run resumed from any checkpoint, within an epoch too, ends with the weights of one that was never interrupted:
      it goes on at the next batch, with the seed and the random numbers it would have had. Skipping loads no data.
    - On SIGTERM or SIGUSR1 all processes finish the iteration, save ``interrupted.pth``, and end with status 75.
    - A checkpoint is written whole or not at all, and outdated ones are removed after that. mmengine removes first.

    With `EpochBasedTrainLoop` and `IterBasedTrainLoop`, and data sets found by index. All arguments are mmengine's:
    ``by_epoch=False, interval=1000`` saves within epochs as well.
    """

    # What an iteration means in this run, and in the one that wrote the checkpoint.
    _data: dict | None = None
    _data_before: dict | None = None

    def before_train(self, runner) -> None:
        """Prepares files, signals and data; the checkpoint to resume from is loaded by now."""
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args, self.file_backend = dict(backend="whole_files"), WholeFileBackend()
            if is_main_process():
                remove_parts(self.out_dir)
                remove_parts(runner.work_dir)
        # With ``diff_rank_seed`` each process has its own, which goes back to that of the first.
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        self._seed = seeds[0]
        self._signals = StopSignals()
        self._place_data(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seeds what the model draws."""
        seed_iteration(self._seed, get_rank(), runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Saves if it is time to; ends the process if it was told to stop.

        Raises:
            SystemExit: Status 75, in all processes after the same iteration, once the checkpoint is written.
        """
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        optimizer = runner.optim_wrapper
        # Gradients that accumulate are in no checkpoint: the step that uses them comes first.
        if (isinstance(optimizer, OptimWrapperDict) or optimizer.should_update()) and self._told_to_stop():
            self._save(runner, f"{INTERRUPTED}.pth", dict(epoch=runner.epoch, iter=runner.iter + 1), by_epoch=False)
            runner.logger.warning(
                f"Told to stop: saved {self.last_ckpt} after iteration {runner.iter + 1}. The same command with "
                f"--resume goes on from there; this one ends with status {STATUS_INTERRUPTED}."
            )
            # Who ends first makes the launcher end the others.
            barrier()
            raise SystemExit(STATUS_INTERRUPTED)

    def after_train_epoch(self, runner) -> None:
        """Saves if it is time to."""
        super().after_train_epoch(runner)
        runner.train_loop.__dict__.pop("run_iter", None)

    def after_train(self, runner) -> None:
        """Gives the signals back."""
        super().after_train(runner)
        self._signals.restore()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Notes what an iteration means in this run."""
        checkpoint["meta"]["train_data"] = self._data

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Reads that note."""
        self._data_before = checkpoint.get("meta", {}).get("train_data")

    # ---- Data

    def _place_data(self, runner) -> None:
        """Replaces the loader by one that begins at the iteration to come, and seeds each batch."""
        loop = runner.train_loop
        loader, endless = loop.dataloader, isinstance(loop, IterBasedTrainLoop)
        if isinstance(loader.dataset, IterableDataset) or not (endless or isinstance(loop, EpochBasedTrainLoop)):
            runner.logger.warning(
                f"A resumed run sees other data than an unbroken one: {type(loop).__name__} over "
                f"{type(loader.dataset).__name__} cannot be told where to begin"
            )
            return
        batch_size = getattr(loader.batch_sampler, "batch_size", None)
        self._data = dict(images=len(loader.dataset), processes=get_world_size(), batch_size=batch_size)
        batches = _rebuild_batches(runner, loader, self._seed)
        skip = runner.iter if endless else runner.iter - runner.epoch * len(batches)
        alike = self._data_before in (None, self._data)
        if not alike:
            runner.logger.warning(
                f"The checkpoint is of a run on {self._data_before}, this one is on {self._data}: it will not end as "
                "the unbroken one would have"
            )
        if not endless and not (alike and 0 <= skip <= len(batches)):
            skip = 0  # the epoch begins anew
        numbered = NumberedBatches(batches, number=runner.iter, skip=skip, endless=endless)
        loop.dataloader = numbered_loader(loader.dataset, numbered, self._seed, get_rank(), loader, loader.collate_fn)
        if endless:
            can_skip = hasattr(loop.dataloader_iterator, "skip_iter")
            loop.dataloader_iterator = _PlacedIterator(loop.dataloader, 0 if can_skip else runner.iter)
        elif skip:
            # The loop counts the batches that it takes; logs are to say where in the epoch they are.
            run_iter = loop.run_iter
            loop.run_iter = lambda index, batch: run_iter(index + skip, batch)

    # ---- Signals

    def _told_to_stop(self) -> bool:
        """Whether any process was; the same answer in all of them."""
        told = torch.tensor(int(self._signals.received is not None))
        all_reduce(told, "max")
        return bool(told)

    # ---- Files

    def _save(self, runner, name: str, meta: dict, by_epoch: bool) -> None:
        """Writes a checkpoint, then the file that names it as the last one."""
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_whole(Path(runner.work_dir, "last_checkpoint"), self.last_ckpt.encode())

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = [f"{INTERRUPTED}.pth"]
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch)
        if is_main_process():
            for name in outdated:
                path = self.file_backend.join_path(self.out_dir, name)
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):
                    # DeepSpeed's checkpoints are folders.
                    self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """mmengine's own, but the best one so far is removed once the better one is written."""
        backend, outdated = self.file_backend, []
        self.file_backend = copy.copy(backend)
        self.file_backend.remove = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        for path in outdated:
            backend.remove(path)


def _rebuild_batches(runner, loader: DataLoader, seed: int):
    """The loader's batch sampler, with the run's seed and from its beginning.

    mmengine builds its own before it reads the seed from the checkpoint, and the original one draws from it at once.
    """
    config = runner.cfg.get("train_dataloader")
    if not isinstance(config, Mapping):  # a loader that was built by hand
        return loader.batch_sampler
    sampler = DATA_SAMPLERS.build(config["sampler"], default_args=dict(dataset=loader.dataset, seed=seed))
    if config.get("batch_sampler") is None:
        return BatchSampler(sampler, loader.batch_size, loader.drop_last)
    return DATA_SAMPLERS.build(
        config["batch_sampler"], default_args=dict(sampler=sampler, batch_size=config["batch_size"])
    )


class _PlacedIterator:
    """Stands for the iterator of `IterBasedTrainLoop`, over a loader that begins at the iteration to come.

    Args:
        loader: Endless.
        refused: How many batches the loop is going to draw and throw away. The original mmengine does, to skip;
            OneDL's calls `skip_iter`.
    """

    def __init__(self, loader: DataLoader, refused: int):
        self._loader, self._refused, self._iterator = loader, refused, None

    def skip_iter(self, count: int) -> None:
        """Does nothing: the loader begins there."""

    def __next__(self):
        if self._refused > 0:
            self._refused -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)
