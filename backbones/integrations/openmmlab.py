"""Registers backbones and necks into mmengine, so that mmdet and mmseg configs can name them.

A config needs ``custom_imports = dict(imports=['backbones'])`` and nothing else.
"""

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS

from backbones import adapters, defocus
from backbones.checkpoints import load_pretrained
from backbones.checkpoints.read import harmless_classes

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


@MODELS.register_module()
class DefocusMamba(InitFromCheckpoint, defocus.DefocusMamba):
    """`backbones.DefocusMamba` with mmengine's ``init_cfg``.

    Args:
        init_cfg: None, or ``dict(type='Pretrained', checkpoint=FILE)``: a released classifier (its moving average
            if it has one, the heads left out), a detector or a backbone. ``container=KEY`` names the weights to take.
        **kwargs: As `backbones.DefocusMamba`, which rejects unknown ones.
    """

    def __init__(self, *args, init_cfg: dict | None = None, **kwargs):
        _check_init_cfg(init_cfg)
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg


MODELS.register_module(module=adapters.SimpleFPN)
