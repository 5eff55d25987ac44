"""How tests compare: one tolerance a dtype, the same everywhere."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
from torch import Tensor

from backbones.ops import cpu_extension
from backbones.ops.dispatch import Backend

# Largest error allowed, relative to the largest value of the truth.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@functools.cache
def lacks_compiler() -> str | None:
    """Why the compiled kernels cannot be built here, or None: then they have to be, and their tests are not skipped."""
    try:
        cpu_extension.compiler()
    except cpu_extension.NoCompiler as error:
        return str(error)
    except RuntimeError:
        # A compiler that does not work is a failure.
        pass
    return None


def skip_reason(backend: Backend, device: str) -> str | None:
    """Why tests of a backend cannot run, or None."""
    if backend.name == "cpu" and device == "cpu" and lacks_compiler() is None:
        return None
    return backend.refusal(device)


needs_library = pytest.mark.skipif(
    lacks_compiler() is not None and cpu_extension.refusal("cpu") is not None, reason=str(lacks_compiler())
)


def relative_error(actual: Tensor, truth: Tensor, floor: float = 1e-30) -> float:
    """max |actual - truth| / max(|truth|, floor), in float64; shapes must agree."""
    assert actual.shape == truth.shape, f"{tuple(actual.shape)} != {tuple(truth.shape)}"
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    if truth.numel() == 0:
        return 0.0
    return ((actual - truth).abs().max() / truth.abs().max().clamp_min(floor)).item()


def assert_close(
    actual: Tensor, truth: Tensor, name: str = "value", tolerance: float | None = None, floor: float = 1e-30
) -> None:
    """Fails where `relative_error` exceeds the tolerance of the dtype of ``actual``, or is not a number."""
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    error = relative_error(actual, truth, floor)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e} ({actual.dtype})"


def assert_same_bits(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """Fails where two state dicts are not of the same names and values, naming those that differ."""
    assert found.keys() == truth.keys()
    different = [name for name in truth if not torch.equal(found[name], truth[name])]
    assert not different


def load_tool(name: str) -> ModuleType:
    """A program as a module: one of `defocus`, or of those in ``tools/`` that a checkout alone has.

    Other packages install a top-level ``tools``, too.
    """
    if importlib.util.find_spec(f"defocus_commands.{name}"):
        return importlib.import_module(f"defocus_commands.{name}")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, f"tools/{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def load_fixture(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """A run of the released modules from `tests/data`: tensors, weights, settings."""
    from safetensors import safe_open

    with safe_open(f"tests/data/{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        settings = file.metadata()
    weights = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return tensors, weights, settings
