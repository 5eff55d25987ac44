"""Exported backbones beside PyTorch: time of a forward pass and the peak of a process that does nothing else."""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from backbones.benchmark import run_export
from backbones.benchmark.clock import Row, ratio_line, table
from backbones.defocus import FAMILIES
from backbones.export import Exportable, export, name_maps
from backbones.integrations.exportable import find_target
from backbones.resolution import resolution_settings

_ROOT = Path(__file__).resolve().parents[2]
_EAGER = "PyTorch"
TITLES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "torch.export program",
    "aot": "AOTInductor package",
}


def exports(options: Namespace) -> None:
    """Each family in PyTorch and in the formats asked for."""
    side = options.image_size
    for family in options.families:
        settings = dict(arch=options.arch, **resolution_settings(side, 224))
        task = dict(size=[options.batch, 3, side, side], threads=torch.get_num_threads(), repeats=options.repeats)
        rows = [_row(_EAGER, task | dict(way="eager", family=family, settings=settings))]
        with tempfile.TemporaryDirectory() as folder:
            for name in options.formats:
                target = find_target(name)
                file = Path(folder) / f"{family}-{name}{target.suffixes[0]}"
                torch.manual_seed(0)
                net = FAMILIES[family](**settings).eval()
                network = Exportable(net, name_maps(net.out_strides), family, net.patch_size, (0.0,) * 3, (1.0,) * 3)
                manifest = export(network, target, file, sizes=[(options.batch, side, side)])
                del net, network
                difference = manifest["checked_against_pytorch"]["sizes"][0]["difference"]
                rows.append(_row(f"{TITLES[name]}, differs by {difference:.0e}", task | dict(way=name, file=str(file))))
        print(table(f"{family} {options.arch}, forward, {options.batch} × {side}², fp32", rows, _EAGER))
        for row in rows[1:]:
            mamba = family == "DefocusMamba" and row.name.startswith(TITLES["onnx"])
            print(f"\n{ratio_line('time', rows, row.name, _EAGER, '≤ 3' if mamba else '')}")
            print(ratio_line("memory of the process", rows, row.name, _EAGER, "≤ 2" if mamba else "", memory=True))
        print()


def _row(name: str, task: dict) -> Row:
    """The figures of one way, from a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, run_export.__file__, json.dumps(task)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return Row(name, lambda: None, found["seconds"], found["peak"])
