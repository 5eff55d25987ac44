"""Stochastic depth that changes while a model trains."""

from torch import nn

from backbones.defocus import DefocusBackbone


def set_drop_path_rate(model: nn.Module, rate: float) -> None:
    """Sets the stochastic depth of a built backbone: ``rate`` at the last block, falling linearly to 0 at the first.

    Args:
        model: A De-focus backbone, or a module that holds one or more.
        rate: In [0, 1).

    Raises:
        ValueError: ``rate`` outside [0, 1), or no De-focus backbone in ``model``.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    backbones = [module for module in model.modules() if isinstance(module, DefocusBackbone)]
    if not backbones:
        raise ValueError(f"{type(model).__name__} holds no De-focus backbone whose drop path could be set")
    for backbone in backbones:
        backbone.set_drop_path_rate(rate)


class DropPathSchedule:
    """Drop path that rises linearly over training, as in the published pre-training (0.1 to 0.7).

    Args:
        model: A De-focus backbone, or a module that holds one.
        start: Rate of the last block at the first step.
        end: The same at the last step.
        total_steps: Steps, or epochs, of training.

    Raises:
        ValueError: A rate outside [0, 1), no steps, no De-focus backbone in ``model``.
    """

    def __init__(self, model: nn.Module, start: float, end: float, total_steps: int):
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        set_drop_path_rate(model, end)
        self.model, self.start, self.end, self.total_steps = model, start, end, total_steps
        self.step(0)

    def rate(self, step: int) -> float:
        """The rate at ``step``, from 0 on; after the last step it stays."""
        share = min(max(step, 0) / max(self.total_steps - 1, 1), 1.0)
        return self.start + (self.end - self.start) * share

    def step(self, step: int) -> None:
        """Sets the rate of ``step``, from 0 on: all state is in the number, so that a resumed run needs no more."""
        set_drop_path_rate(self.model, self.rate(step))
