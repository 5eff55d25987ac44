"""transformers' Trainer with our learning rates, and with what a long run on one machine or several needs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from backbones.integrations.frameworks import needed
from backbones.integrations.transformers_training.data import LabelledImages
from backbones.integrations.transformers_training.learning import parameter_groups, plan_learning
from backbones.integrations.transformers_training.scoring import main_scores
from backbones.resume import StopSignals
from backbones.thread_count import ThreadCount, may_choose_threads
from defocus_eval.files import write_text

with needed("transformers"):
    from transformers import Trainer, TrainerCallback

logger = logging.getLogger("backbones")

LOG = "log.jsonl"


class LearningTrainer(Trainer):
    """Trainer whose optimizer follows `plan_learning`. All arguments but the first two are Trainer's.

    Args:
        backbone_rate: As of `plan_learning`.
        layer_decay: The same.
    """

    def __init__(self, *args, backbone_rate: float = 1.0, layer_decay: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        # Each head divides its loss itself, by objects or pixels.
        self.model_accepts_loss_kwargs = False
        # Now, for a wrapped model's parameters have other names and shapes.
        self._plan = plan_learning(self.model, backbone_rate, layer_decay)
        if self.is_fsdp_enabled:
            # accelerate asks for them, and detectors have none.
            self.model.get_input_embeddings = lambda: None

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer that the arguments name, with a group for each way to learn."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model.named_parameters(), self._plan, self.args.learning_rate, self.args.weight_decay
            )
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Checkpoints of RT-DETR have the names of the released weights. Trainer looks for the model's own in them, and
        # goes on without a word where it finds none.
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(self.model).from_pretrained(resume_from_checkpoint)
        (self.model if model is None else model).load_state_dict(saved.state_dict())


class BeginEpoch(TrainerCallback):
    """Tells the data which epoch it is, also where a run goes on within one.

    Args:
        dataset: What is trained on.
    """

    def __init__(self, dataset: LabelledImages):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Tells it."""
        self.dataset.begin_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1 all processes finish the step, save a checkpoint, and end the training.

    Attributes:
        received: The signal; None without one.
    """

    def __init__(self):
        self.signals = StopSignals()
        self.received = None

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for a checkpoint and the end, in all processes after the same step, if any was told to stop."""
        received = self.signals.received
        number = torch.tensor(int(received or 0), device=args.device)
        if torch.distributed.is_initialized():
            # Whoever is told, all stop.
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        if number:
            self.received = int(number)
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Gives the signals back."""
        self.signals.restore()


class FollowThreads(TrainerCallback):
    """Finds the number of threads with which a training on a CPU is fastest, and follows it: `ThreadCount`."""

    def __init__(self):
        self.thread_count = ThreadCount()

    @staticmethod
    def wanted(device: torch.device) -> bool:
        """Not on a GPU, in several processes, and where ``OMP_NUM_THREADS`` says how many there are to be."""
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return may_choose_threads(device.type, processes)

    def on_step_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Sets the threads of the next step by the time of this one, and logs a change."""
        said = self.thread_count.step(time.perf_counter() - self.start)
        if said:
            logger.info(said)


class WriteLog(TrainerCallback):
    """Prints losses, and writes them and scores, a line each, to a file that ``defocus report --log`` reads.

    Args:
        path: The file. What a resumed run did not keep is cut from it.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock, and cuts from the file what lies behind the step that the run goes on from."""
        self._last = (time.perf_counter(), state.global_step)
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text().splitlines() if self.path.is_file() and state.global_step else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Writes the losses with the seconds of a step, and logs them with the time that is left."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        start, step = self._last
        self._last = (time.perf_counter(), state.global_step)
        seconds = (self._last[0] - start) / max(state.global_step - step, 1)
        self.write({"step": state.global_step, "time": seconds, **logs})
        left = timedelta(seconds=round(seconds * (state.max_steps - state.global_step)))
        logger.info(
            "step %d of %d: loss %.3f, rate %.2g, %.3f s a step, %s left",
            state.global_step,
            state.max_steps,
            logs["loss"],
            logs["learning_rate"],
            seconds,
            left,
        )

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line of JSON."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class ScoreSometimes(TrainerCallback):
    """Scores the model at the end of some epochs, but not of the last, which is scored by who trains.

    Args:
        interval: Epochs between.
        score: Called with the model in all processes; gives the scores in the first.
        log: Where they are written.
    """

    def __init__(self, interval: int, score: Callable[[nn.Module], dict[str, Any] | None], log: WriteLog):
        self.interval, self.score, self.log = interval, score, log

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Scores if the epoch is one to score, and writes what came out."""
        epoch = round(state.epoch)
        if epoch % self.interval or state.global_step >= state.max_steps or control.should_training_stop:
            return
        result = self.score(model)
        if result is not None:
            scores = main_scores(result)
            logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
            self.log.write({"step": state.global_step, **scores})
