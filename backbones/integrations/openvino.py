"""OpenVINO's files, by its own importer of ONNX."""

import tempfile
from pathlib import Path

import torch

from backbones.export.check import ExportError, Runner
from backbones.export.network import Exportable
from backbones.export.target import Target
from backbones.integrations.frameworks import needed
from backbones.integrations.onnx import ONNX, ir, to_onnx

with needed("openvino"):
    import openvino


def carry_captured(graph: ir.Graph) -> None:
    """Hands what the body of a scan reads from outside through the scan, as states that stay as they are.

    OpenVINO's importer miscounts the states of a scan whose body reads more than its inputs. Constants are repeated in
    the body: as states, the axes among them would leave ranks open.
    """
    for node in [node for node in graph if node.op_type == "Scan"]:
        body = node.attributes["body"].as_graph()
        made = {*body.inputs, *body.initializers.values(), *(out for inner in body for out in inner.outputs)}
        read = (x for inner in body for x in inner.inputs)
        captured = _repeat_constants(body, list(dict.fromkeys(x for x in read if x is not None and x not in made)))
        scanned = node.attributes["num_scan_inputs"].as_int()
        states = len(node.inputs) - scanned
        for i, value in enumerate(captured):
            carried = ir.Value(name=f"{value.name}_in_{node.name}", type=value.type, shape=value.shape)
            _replace_in(body, value, carried)
            same = ir.node("Identity", [carried])
            same.outputs[0].name = f"{carried.name}_same"
            same.outputs[0].type, same.outputs[0].shape = value.type, value.shape
            body.append(same)
            body.inputs.insert(states + i, carried)
            body.outputs.insert(states + i, same.outputs[0])
        inputs = [*node.inputs[:states], *captured, *node.inputs[states:]]
        count = len(node.outputs) + len(captured)
        scan = ir.Node("", "Scan", inputs, list(node.attributes.values()), num_outputs=count, name=node.name)
        kept = [*scan.outputs[:states], *scan.outputs[states + len(captured) :]]
        for i, value in enumerate(captured):
            scan.outputs[states + i].name = f"{value.name}_after_{node.name}"
        ir.convenience.replace_nodes_and_values(graph, node, [node], [scan], node.outputs, kept)


def _repeat_constants(body: ir.Graph, captured: list[ir.Value]) -> list[ir.Value]:
    """Gives a body constants of its own for those in ``captured``; returns the others."""
    others = []
    for value in captured:
        constant = ir.convenience.get_const_tensor(value)
        if constant is None:
            others.append(value)
            continue
        node = ir.node("Constant", [], attributes={"value": constant})
        node.outputs[0].name = f"{value.name}_in_{body.name}"
        body.insert_before(body[0], node)
        _replace_in(body, value, node.outputs[0])
    return others


def _replace_in(body: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for node in body:
        for place, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(place, new)


def _write(network: Exportable, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "network.onnx"
        model = to_onnx(network)
        carry_captured(model.graph)
        ir.save(model, file)
        try:
            model = openvino.convert_model(file)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO does not import the network ({str(error).splitlines()[0]}): export with --to onnx"
            ) from error
        # In 16 bits, as it saves by default, weights would differ by more than the check lets through.
        openvino.save_model(model, path, compress_to_fp16=False)


def _load(path: Path) -> Runner:
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(path, "CPU", settings)
    return lambda images: [torch.from_numpy(x.copy()) for x in compiled(images.numpy()).values()]


def _versions() -> dict[str, str]:
    return {**ONNX.versions(), "openvino": openvino.__version__}


OPENVINO = Target("openvino", (".xml", ".bin"), _write, _load, _versions)
