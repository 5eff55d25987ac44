"""Networks to files that run without this package, each compared with PyTorch before it is written."""

from backbones.export.check import ExportError, check, difference
from backbones.export.network import Exportable, Flat, flatten, name_maps, patch_of
from backbones.export.program import PACKAGE, PROGRAM, trace
from backbones.export.target import Target
from backbones.export.write import TOLERANCE, export

__all__ = [
    "PACKAGE",
    "PROGRAM",
    "TOLERANCE",
    "ExportError",
    "Exportable",
    "Flat",
    "Target",
    "check",
    "difference",
    "export",
    "flatten",
    "name_maps",
    "patch_of",
    "trace",
]
