"""Runs of a small model under mmengine's own runner, in this process, that can be interrupted and go on."""

import itertools
import os
import random
import traceback

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import backbones  # noqa: F401  registers the hook

IMAGES, BATCH = 10, 3
names = (f"resume-{number}" for number in itertools.count())


@DATASETS.register_module(force=True)
class NoisyImages(Dataset):
    """Numbers, with what a pipeline may draw from: Python's, numpy's and torch's generators."""

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        self.loaded.append(index)
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return dict(inputs=torch.tensor([index / IMAGES, noise]))

    def get_data_info(self, index):
        return dict(width=1 + index % 2, height=1)


@MODELS.register_module(force=True)
class Draws(BaseModel):
    """Learns from what it is shown and from what it draws; in validation it draws as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4)
        self.seen = []

    def forward(self, inputs, mode="tensor"):
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        if mode == "predict":
            return [noise]
        self.seen.append([round(value * IMAGES) for value in inputs[:, 0].tolist()])
        return dict(loss=(F.dropout(self.layer(inputs), 0.3) + noise).square().mean())


@METRICS.register_module(force=True)
class Rising(BaseMetric):
    """A score that is better each time."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Rising.count += 1
        return dict(score=Rising.count)


@HOOKS.register_module(force=True)
class At(Hook):
    """Does something after an iteration, when all else that belongs to it is done."""

    priority = "LOWEST"

    def __init__(self, iteration, act):
        self.iteration, self.act = iteration, act

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            self.act(batch_idx)


class Killed(BaseException):
    """Ends a run as suddenly as this process allows."""


def kill(_):
    raise Killed


def send(number):
    return lambda _: os.kill(os.getpid(), number)


LOOPS = {"epochs": dict(by_epoch=True, max_epochs=3), "iterations": dict(by_epoch=False, max_iters=11)}


def make(
    work_dir,
    loop="epochs",
    sampler="DefaultSampler",
    grouped=False,
    workers=0,
    batch_size=BATCH,
    seed=3,
    accumulate=1,
    validated=False,
    at=(),
    **checkpoint,
):
    """A runner of 12 iterations in 3 epochs, or of 11; it saves after each second one, and resumes if it can."""
    data = dict(
        dataset=dict(type="NoisyImages"),
        sampler=dict(type=sampler, shuffle=True),
        collate_fn=dict(type="default_collate"),
        num_workers=workers,
        batch_size=batch_size,
    )
    if grouped:
        pytest.importorskip("mmdet", reason="mmdet is not installed")
        data["batch_sampler"] = dict(type="mmdet.AspectRatioBatchSampler")
    validation = {}
    if validated:
        loader = dict(
            dataset=dict(type="NoisyImages"), sampler=dict(type="DefaultSampler", shuffle=False), batch_size=5
        )
        validation = dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=dict(type="Rising"))
    return Runner(
        dict(type="Draws"),
        str(work_dir),
        train_dataloader=data,
        train_cfg=LOOPS[loop],
        **validation,
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1), accumulative_counts=accumulate),
        param_scheduler=dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=8),
        default_hooks=dict(
            checkpoint={"type": "ResumableCheckpointHook", "by_epoch": False, "interval": 2, **checkpoint},
            logger=None,
        ),
        custom_hooks=[dict(type="At", iteration=iteration, act=act) for iteration, act in at],
        randomness=dict(seed=seed),
        resume=True,
        log_level="WARNING",
        experiment_name=next(names),
        default_scope="mmengine",
        cfg=dict(train_dataloader=data),
    )


def weights(runner):
    return torch.cat([p.detach().flatten() for p in runner.model.parameters()])


def interrupt(work_dir, at, raises=Killed, **settings):
    runner = make(work_dir, at=at, **settings)
    with pytest.raises(raises) as caught:
        runner.train()
    traceback.clear_frames(caught.tb)
    stop_loading(runner)
    return caught.value


def stop_loading(runner):
    """Lets go of the loader's processes here: the garbage collector takes 5 seconds for each."""
    runner.train_loop.__dict__.pop("dataloader_iterator", None)


def finish(work_dir, **settings):
    """The same command again, to its end."""
    runner = make(work_dir, **settings)
    runner.train()
    stop_loading(runner)
    return runner
