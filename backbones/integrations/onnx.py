"""ONNX files by PyTorch's exporter, each operation of ours as a function that is exported once.

A network calls an operation in each of its blocks. In the trace such a call is one node; what it does is traced apart,
for each set of its constants, and put in its place at the end.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.export.check import ExportError, Runner
from backbones.export.network import Exportable
from backbones.export.program import trace, trace_network
from backbones.export.target import Target
from backbones.integrations.frameworks import needed
from backbones.ops.dispatch import Backend, Operation, watching

with needed("onnx"):
    import onnx
with needed("onnxscript"):
    import onnx_ir as ir
    import onnxscript
    from onnx_ir.passes.common import InlinePass

OPSET = 20
DOMAIN = "defocus"
# Bytes of weights; a file of 2 GiB cannot be read.
LARGEST = 2**31 - 2**24
# How many of an operation's first tensors are sequences `(b, l, ...)`.
_SEQUENCES = {"mamba_inner": 1, "decay_attention": 3, "retention": 3}
# Sizes that an operation is traced with; any do that are not its own.
_BATCH, _LENGTH = 2, 300


@dataclass(frozen=True)
class _Call:
    """One way in which a network calls an operation: all that its program depends on."""

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    constants: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Of the ONNX function."""
        return f"{self.operation}_{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"


class _Watch:
    """Puts a node in the place of each operation that is run, and keeps what the node stands for."""

    def __init__(self):
        self.calls: dict[_Call, Operation] = {}

    def __call__(self, operation: Operation, backend: Backend, arguments: tuple) -> Tensor:
        sequences = _SEQUENCES.get(operation.name)
        if sequences is None:
            return backend.run(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        constants = tuple(x for x in arguments if not isinstance(x, Tensor))
        shapes = [tuple(x.shape[2:] if i < sequences else x.shape) for i, x in enumerate(tensors)]
        call = _Call(operation.name, tuple(shapes), tuple(x.dtype for x in tensors), constants)
        self.calls[call] = operation
        batch, length = tensors[0].shape[:2]
        # The gate of Mamba stands beside what is scanned; a head's output is as wide as its values.
        width = [shapes[0][0] // 2] if operation.name == "mamba_inner" else shapes[2]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{call.name}", tensors, dtype=tensors[0].dtype, shape=[batch, length, *width], version=1
        )


class _Alone(nn.Module):
    """One call as a network."""

    def __init__(self, call: _Call, operation: Operation):
        super().__init__()
        self.constants = call.constants
        self.operation = operation.backends["export"].run

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.operation(*tensors, *self.constants)


def _function(call: _Call, operation: Operation) -> ir.Function:
    """The ONNX function of one call."""
    count = _SEQUENCES[call.operation]
    tensors, dynamic = [], []
    for i, (shape, dtype) in enumerate(zip(call.shapes, call.dtypes, strict=True)):
        sequence = i < count
        tensors.append(torch.ones(*((_BATCH, _LENGTH) if sequence else ()), *shape, dtype=dtype))
        dynamic.append({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} if sequence else None)
    program = trace(_Alone(call, operation).eval(), tuple(tensors), (tuple(dynamic),))
    graph = _translate(program).graph
    constants = [
        ir.node("Constant", [], attributes={"value": value.const_value}, outputs=[value])
        for value in list(graph.initializers.values())
    ]
    graph.initializers.clear()
    for node in reversed(constants):
        graph.insert_before(graph[0], node)
    return ir.Function(DOMAIN, call.name, graph=graph, attributes=[])


def _translate(program: torch.export.ExportedProgram, **names) -> ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names).model


def to_onnx(network: Exportable) -> ir.Model:
    """A network as an ONNX model with the input "images" and the network's outputs."""
    watch = _Watch()
    with watching(watch):
        program = trace_network(network)
    model = _translate(program, input_names=["images"], output_names=list(network.outputs))
    for call, operation in watch.calls.items():
        function = _function(call, operation)
        model.functions[function.identifier()] = function
    InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)
    images = model.graph.inputs[0]
    images.shape = ir.Shape(network.open_axes.get(axis, side) for axis, side in enumerate(images.shape))
    model.producer_name = "backbones"
    return model


def _write(network: Exportable, path: Path) -> None:
    model = to_onnx(network)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > LARGEST:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB, a file of ONNX holds less than 2: export with --to torch or aot"
        )
    ir.save(model, path)


def _load(path: Path) -> Runner:
    with needed("onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors alone: it warns of each shape that it cannot tell beforehand.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


def _versions() -> dict[str, str]:
    import onnxruntime

    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": str(OPSET),
    }


ONNX = Target("onnx", (".onnx",), _write, _load, _versions)
