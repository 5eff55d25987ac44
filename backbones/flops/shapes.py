"""Runs a model on shapes alone: a detector at 1,024 pixels in seconds, without memory for weights or activations.

Tensors are torch's fake ones. Their values are unknown, but for those of small tensors that follow from shapes (the
sides of maps, anchors of one cell), which are computed. Where a model asks for a value that depends on the image, it is
told the upper limit: every box passes its threshold, no box suppresses another, every test of a mask holds. So a
detector is counted at the most proposals and detections that its configuration lets through.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Up to this many numbers are computed where they follow from shapes.
KNOWN_NUMBERS = 4096
_FACTORIES = {"arange", "linspace", "full", "zeros", "ones", "scalar_tensor", "eye"}
aten = torch.ops.aten


@contextlib.contextmanager
def shapes_only() -> Iterator["UpperLimits"]:
    """Makes every tensor that is created while it lasts a fake one on the CPU.

    Yields:
        What was answered with an upper limit, in its attribute ``assumed``: operator to number of times.
    """
    with (
        patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", KNOWN_NUMBERS),
        # Torch's own writes into memory that a fake tensor does not have.
        patch.object(torch, "_shape_as_tensor", lambda x: torch.tensor(x.shape)),
        patch.object(FakeTensor, "__deepcopy__", _copy),
        without_truncated_normals(),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        UpperLimits(fake) as limits,
    ):
        yield limits


def without_truncated_normals() -> contextlib.AbstractContextManager:
    """Leaves tensors as they are where they would be filled from a truncated normal distribution.

    From torch 2.15 on that draws until no number lies outside of the bounds, which fake tensors cannot say.
    """
    return patch.object(nn.init, "_no_grad_trunc_normal_", lambda x, *_, **__: x)


def _copy(x: FakeTensor, memo: dict) -> FakeTensor:
    """A copy for `copy.deepcopy`.

    Torch's own copies the mode that made the tensor too, and frees the references that it holds twice.
    """
    if id(x) not in memo:
        memo[id(x)] = copied = x.detach().clone().requires_grad_(x.requires_grad)
        if isinstance(x, nn.Parameter):
            copied._is_param = True
    return memo[id(x)]


def is_fake(*arguments: object) -> bool:
    """Whether there is a tensor of unknown values among ``arguments``."""
    return any(isinstance(x, FakeTensor) and x.constant is None for x in tree_leaves(arguments))


class UpperLimits(TorchDispatchMode):
    """Answers for fake tensors what only values could answer, and computes what follows from shapes.

    Args:
        fake: The mode that makes the tensors fake.

    Attributes:
        assumed: Operators that were answered with their upper limit, and how often.
    """

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.assumed: Counter[str] = Counter()
        self._fake = fake

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _ANSWERS and is_fake(args, kwargs):
            out = _ANSWERS[name](*args, **kwargs)
            if out is not NotImplemented:
                self.assumed[name.replace("::", ".")] += 1
                return out
        out = func(*args, **kwargs)
        if name.removeprefix("aten::") in _FACTORIES and out.numel() <= KNOWN_NUMBERS and not _has_tensors(args):
            return self._compute(func, *args, **kwargs)
        return out

    def _compute(self, func, *args, **kwargs) -> FakeTensor:
        """The fake tensor of a real one, which keeps its values."""
        with unset_fake_temporarily():
            real = func(*args, **kwargs)
        return self._fake.fake_tensor_converter.from_real_tensor(self._fake, real, make_constant=True)


def _has_tensors(arguments: tuple) -> bool:
    return any(isinstance(x, Tensor) for x in tree_leaves(arguments))


def _scalar(x: Tensor):
    """True, or the smallest number that is not zero."""
    return True if x.dtype == torch.bool else 1.0 if x.dtype.is_floating_point else 1


def _all_true(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.ndim), dtype=torch.long)


def _index(x: Tensor, indices) -> Tensor:
    """``x[indices]`` with masks that hold everywhere."""
    if not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return NotImplemented
    numbers = []
    for i in indices:
        if i is not None and i.dtype in (torch.bool, torch.uint8):
            numbers += [i.new_empty(i.numel(), dtype=torch.long)] * i.ndim
        else:
            numbers.append(i)
    return aten.index.Tensor(x, numbers)


def _masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _all_boxes(boxes: Tensor, *_, **__) -> Tensor:
    return boxes.new_empty(len(boxes), dtype=torch.long)


_ANSWERS: dict[str, Any] = {
    "aten::_local_scalar_dense": _scalar,
    "aten::equal": lambda x, y: True,
    "aten::nonzero": _all_true,
    "aten::index": _index,
    "aten::masked_select": _masked_select,
    "torchvision::nms": _all_boxes,
}
