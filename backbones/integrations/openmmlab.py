"""Registers backbones and necks into mmengine, so that mmdet and mmseg configs can name them.

A config needs ``custom_imports = dict(imports=['backbones'])`` and nothing else.
"""

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, MODELS

from backbones import adapters, defocus
from backbones.checkpoints import load_pretrained
from backbones.checkpoints.read import harmless_classes
from backbones.drop_path_schedule import DropPathSchedule

# mmengine before 0.10.8 reads its own checkpoints with torch.load's default, which since torch 2.6 admits tensors
# and plain data only. This lets exactly the plain data that mmengine writes pass.
torch.serialization.add_safe_globals(harmless_classes())


class InitFromCheckpoint:
    """Gives a backbone mmengine's ``init_cfg``, of which only ``Pretrained`` has a meaning here."""

    init_cfg: dict | None
    is_init = False

    def init_weights(self) -> None:
        """Loads the checkpoint of ``init_cfg``; without one the constructor's values stay.

        Raises:
            ValueError: ``init_cfg`` is not ``dict(type='Pretrained', checkpoint=...)``.
            CheckpointError: The checkpoint cannot be read or does not fit.
        """
        if self.init_cfg is not None and not self.is_init:
            report = load_pretrained(self, self.init_cfg["checkpoint"], self.init_cfg.get("container"))
            print_log(str(report), logger="current")
        self.is_init = True


def _check_init_cfg(init_cfg):
    if init_cfg is None:
        return
    allowed = {"type", "checkpoint", "container"}
    if init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg or set(init_cfg) - allowed:
        raise ValueError(
            "init_cfg must be dict(type='Pretrained', checkpoint=FILE), optionally with container=KEY, "
            f"got {dict(init_cfg)}"
        )


def _with_init_cfg(family: type[defocus.DefocusBackbone]) -> type:
    """A family of backbones with mmengine's ``init_cfg``.

    That is None, or ``dict(type='Pretrained', checkpoint=FILE)``: a released classifier (its moving average if it has
    one, the heads left out), a detector or a backbone. ``container=KEY`` names the weights to take. All other
    arguments are the family's own, which rejects unknown ones.
    """

    def __init__(self, *args, init_cfg: dict | None = None, **kwargs):
        _check_init_cfg(init_cfg)
        family.__init__(self, *args, **kwargs)
        self.init_cfg = init_cfg

    members = {"__init__": __init__, "__doc__": family.__doc__, "__module__": __name__}
    return type(family.__name__, (InitFromCheckpoint, family), members)


for _family in defocus.FAMILIES.values():
    MODELS.register_module(module=_with_init_cfg(_family))
MODELS.register_module(module=adapters.SimpleFPN)


@HOOKS.register_module()
class DropPathScheduleHook(Hook):
    """Raises the backbone's drop path linearly from epoch to epoch, or from iteration to iteration without epochs.

    Args:
        start: Rate of the last block at the first step.
        end: The same at the last step.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        self.by_epoch = hasattr(loop, "max_epochs") and type(loop).__name__ != "IterBasedTrainLoop"
        steps = loop.max_epochs if self.by_epoch else loop.max_iters
        self.schedule = DropPathSchedule(runner.model, self.start, self.end, steps)

    def before_train_epoch(self, runner) -> None:
        if self.by_epoch:
            self.schedule.step(runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.by_epoch:
            self.schedule.step(runner.iter)
