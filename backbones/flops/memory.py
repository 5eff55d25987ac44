"""Bytes that activations take, by following storages: on fake tensors as on real ones."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class PeakMemory(TorchDispatchMode):
    """The most bytes alive at once of all storages that are made while it lasts.

    What an operator makes and drops within itself is not seen: the workspace of a kernel, the chunks of a scan.

    Attributes:
        peak: Bytes.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._alive = 0
        # Bytes that count, 0 for storages that were there before: an operator may give back what it was given.
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._add(x, counts=False)
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._add(x, counts=True)
        return out

    def _add(self, x: Tensor, counts: bool) -> None:
        key, storage = _key(x), x.untyped_storage()
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counts else 0
        self._alive += self._sizes[key]
        self.peak = max(self.peak, self._alive)
        # The next storage may get the place, and so the key, of one that is gone.
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


class KeptForBackward(torch.autograd.graph.saved_tensors_hooks):
    """The bytes that autograd keeps of a forward pass that runs while it lasts, each storage once.

    Args:
        held: Tensors that are there anyway: parameters, buffers, the image.

    Attributes:
        total: Bytes.
    """

    def __init__(self, held: Iterable[Tensor]):
        super().__init__(self._pack, lambda x: x)
        self.total = 0
        # The storages themselves, so that none gets the name of one that is gone.
        self._seen = {_key(x): x.untyped_storage() for x in held}

    # Its base gives nothing, though it is a context like any other.
    def __enter__(self) -> "KeptForBackward":  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        if _key(x) not in self._seen:
            self._seen[_key(x)] = x.untyped_storage()
            self.total += x.untyped_storage().nbytes()
        return x
