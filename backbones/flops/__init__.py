"""FLOPs, parameters and activation memory of any model, our operations counted, and all that was not counted listed."""

from backbones.flops.counter import Counts, FlopCounter, Uncounted
from backbones.flops.measure import Measurement, Subject, measure
from backbones.flops.shapes import shapes_only

__all__ = ["Counts", "FlopCounter", "Measurement", "Subject", "Uncounted", "measure", "shapes_only"]
