"""Chooses the backend of an operation: the one place that does.

A backend is data: a name, a test that says why it cannot serve a device, and a function. Operations list theirs
in order of preference. The ``backend`` argument of an operation, or its environment variable, forces one by name; a
forced backend that cannot run raises with its reason, only the automatic choice falls through.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger("backbones")
# PyTorch 2.6 does not tell an export from another compilation.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
# What `torch.export` traces where nothing is named, by preference: programs that run without this package.
_EXPORTED = ("export", "torch")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    Attributes:
        name: What users write in ``backend=`` and in the operation's environment variable.
        run: The implementation, with the signature of the public operation less ``backend``.
        refusal: Given a device type ("cpu", "cuda", ...), None if the backend can serve it, else the reason.
        automatic: Whether the backend may be chosen without being named.
        may_differ: Given a device type, why two runs on it may differ in their last bits, or None if they never do.
    """

    name: str
    run: Callable
    refusal: Callable[[str], str | None]
    automatic: bool = True
    may_differ: Callable[[str], str | None] = lambda device_type: None


def import_refusal(module: str, install: str) -> str | None:
    """Why a backend cannot import what it runs on, or None.

    Args:
        module: Its name, which is imported.
        install: What brings the package.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(module)
    # A package that is old or broken raises anything: an AttributeError of its own, an OSError of its library.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return f"the package {package} is not installed: {install}"
        return f"the package {package} cannot be imported ({type(error).__name__}: {error}): mend it, or {install}"
    return None


def triton_refusal(device_type: str) -> str | None:
    """Why Triton kernels cannot serve ``device_type``, or None."""
    # Triton's interpreter, to check the kernels without a GPU.
    interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        return "Triton kernels need CUDA (or, to check them on the CPU, TRITON_INTERPRET=1 set before Python starts)"
    return import_refusal("triton", "pip install triton")


def serves_every_device(device_type: str) -> None:
    """The `Backend.refusal` of plain PyTorch."""
    return None


def check_devices(**tensors: Tensor) -> None:
    """Raises ValueError, naming all, if the inputs of an operation are not on one device: a kernel would not notice."""
    if len({x.device for x in tensors.values()}) > 1:
        (first, x), *others = tensors.items()
        named = ", ".join(f"{name} on {other.device}" for name, other in others)
        raise ValueError(f"{first} is on {x.device}, {named}: move them to one device")


def check_triton_dtypes(**tensors: Tensor) -> None:
    """Raises ValueError, naming it, if a tensor is in none of the dtypes that Triton kernels read."""
    for name, x in tensors.items():
        if x.dtype not in TRITON_DTYPES:
            raise ValueError(
                f"the triton backend works on fp32, bf16 or fp16, got {name} in {x.dtype}: "
                'cast it, or choose backend="torch"'
            )


class Operation:
    """The backends of one operation, in order of preference.

    Args:
        name: Shown in messages; unique.
        backends: First come, first served among those that are automatic and do not refuse.
        environment: The variable that forces a backend.
    """

    def __init__(self, name: str, backends: Sequence[Backend], environment: str):
        self.name = name
        self.environment = environment
        self.backends = {backend.name: backend for backend in backends}
        self._selected: dict[tuple, str] = {}
        _operations[name] = self

    def select(self, device_type: str, requested: str | None = None) -> Backend:
        """The backend to run on ``device_type``; inside of `torch.export`, one that is plain PyTorch.

        Args:
            device_type: As in ``tensor.device.type``.
            requested: A backend's name; None asks the environment, and without an answer chooses.

        Raises:
            ValueError: The name is none of this operation's backends.
            RuntimeError: The named backend cannot run here; the message says why.
        """
        return self.backends[_select(self.name, device_type, requested)]

    def run(self, requested: str | None, *arguments):
        """Runs the operation on the device of its first argument, outside of autocast.

        Each backend says itself what it computes in, at least fp32 where sums are long, and autocast would cast inside
        of it. Backward runs as ever behind the context of autocast.

        Args:
            requested: As of `select`.
            *arguments: As the backends take them.
        """
        device_type = arguments[0].device.type
        backend = self.select(device_type, requested)
        with without_autocast(device_type):
            if _watcher is not None:
                return _watcher(self, backend, arguments)
            return backend.run(*arguments)

    def _choose(self, device_type: str, requested: str | None, exporting: bool, environment: str | None) -> str:
        name, source = (requested, "backend=") if requested else (environment, f"{self.environment}=")
        if name is not None:
            if name not in self.backends:
                known = ", ".join(self.backends)
                raise ValueError(f"{source}{name!r} is no backend of {self.name}; there are: {known}")
            reason = self.backends[name].refusal(device_type)
            if reason is not None:
                raise RuntimeError(f"{self.name}: {source}{name!r} cannot run on {device_type}: {reason}")
            logger.info("%s on %s: backend %s, as asked by %s", self.name, device_type, name, source[:-1])
            return name
        if exporting:
            return next(name for name in _EXPORTED if name in self.backends)
        refusals: list[str] = []
        for backend in self.backends.values():
            if not backend.automatic:
                continue
            reason = backend.refusal(device_type)
            if reason is None:
                passed = f" ({'; '.join(refusals)})" if refusals else ""
                logger.info("%s on %s: backend %s%s", self.name, device_type, backend.name, passed)
                return backend.name
            refusals.append(f"{backend.name}: {reason}")
        raise RuntimeError(f"{self.name}: no backend serves {device_type} ({'; '.join(refusals)})")


_operations: dict[str, Operation] = {}
# What runs the operations while there is one; see `watching`.
_watcher: Callable | None = None


@contextlib.contextmanager
def watching(watcher: Callable[[Operation, Backend, tuple], object]) -> Iterator[None]:
    """While it lasts, every run of an operation is the call ``watcher(operation, backend, arguments)``.

    For those who count or record what runs, whatever backend it runs on. The watcher gives the result, as a rule that
    of ``backend.run(*arguments)``.
    """
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A context in which operations on a device compute in the dtypes that they are given."""
    # Shapes alone have no dtype to compute in, and no autocast.
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


# Tracing keeps the answer as a constant, so that a compiled graph neither reads the environment nor logs. That is
# why it takes the operation by name, and asks here whether there is an export: what is traced is always told so.
@torch.compiler.assume_constant_result
def _select(name: str, device_type: str, requested: str | None) -> str:
    operation = _operations[name]
    key = (device_type, requested, is_exporting(), os.environ.get(operation.environment) or None)
    if key not in operation._selected:
        operation._selected[key] = operation._choose(*key)
    return operation._selected[key]
