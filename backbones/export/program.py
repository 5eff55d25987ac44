"""A network as a program of PyTorch's operators, for images of any size: `torch.export`, and AOTInductor's packages."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.export.apart import Apart
from backbones.export.check import ExportError, Runner, first_line
from backbones.export.network import Exportable, Flat
from backbones.export.target import Target
from backbones.ops.exported import without_scan


def trace(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: tuple) -> torch.export.ExportedProgram:
    """`torch.export` of a network whose sizes stay open.

    Operations of this package take part in the form that is plain PyTorch, so that the program runs without it.

    Args:
        model: In evaluation.
        inputs: Of more than one in each dimension that is dynamic.
        dynamic: Of each input, its dynamic dimensions, nested as `forward` takes them.
    """
    with torch.no_grad(), _any_size():
        return torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)


def _any_size() -> contextlib.AbstractContextManager:
    """Without it a program would refuse, or take for another case, a size of one: one image, one row of tokens."""
    settings: Any = torch.fx.experimental._config
    return settings.patch(backed_size_oblivious=True)


def trace_network(network: Exportable, size: tuple[int, int, int] | None = None) -> torch.export.ExportedProgram:
    """`trace` of a network on images, of its own `traced` size or of another."""
    return trace(Flat(network.model), (network.images(*(size or network.traced)),), (network.dynamic,))


def _write(network: Exportable, path: Path) -> None:
    program = trace_network(network)
    # With them a loaded program would refuse a size of one, by guards that hang on layout alone; it is checked on such.
    program.example_inputs = None
    torch.export.save(program, path)


def _load(path: Path) -> Runner:
    return torch.inference_mode()(torch.export.load(path).module().forward)


def _compile(network: Exportable, path: Path) -> None:
    _check_compiler()
    with without_scan():
        program = trace_network(network, network.shown)
    try:
        # As many threads as whoever runs it has set, not those of the machine that compiles it.
        with _any_size():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"cpp.dynamic_threads": True}
            )
    # What Inductor raises hangs on where in it a network fails: classes of its own, a KeyError, an AssertionError.
    except Exception as error:
        raise ExportError(
            f"AOTInductor of PyTorch {torch.__version__} does not compile the network ({type(error).__name__}: "
            f"{first_line(error)}): export with --to torch, --to onnx or --to openvino"
        ) from error


def _check_compiler() -> None:
    # Its import takes seconds, which only those who compile need to wait.
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ExportError(
            "AOTInductor needs a C++ compiler, and there is none: install g++ (on Debian and Ubuntu apt-get install "
            "g++), or name another in the environment variable CXX"
        ) from error


def _load_package(path: Path) -> Runner:
    return Apart(load_package, path)


def load_package(path: Path) -> Runner:
    """What runs a package here; one that crashes takes this program along."""
    return torch.inference_mode()(torch._inductor.aoti_load_package(str(path)).__call__)


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__}


PROGRAM = Target("torch", (".pt2",), _write, _load, _versions)
PACKAGE = Target("aot", (".pt2",), _compile, _load_package, _versions)
