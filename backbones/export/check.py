"""Whether what was exported gives what PyTorch gives."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.export.network import Exportable, flatten

# Runs what was exported: images to outputs.
Runner = Callable[[Tensor], Sequence[Tensor]]
# Of an export's error in float64's eyes, where PyTorch's own fp32 is not within the tolerance.
MARGIN = 2.0


class ExportError(RuntimeError):
    """A network that cannot be exported, or whose export differs; the message says what to do."""


@dataclass(frozen=True)
class Checked:
    """How far an export was from PyTorch on images of one size.

    Attributes:
        size: Batch, height and width.
        difference: The largest of all outputs, as of `difference`.
        errors: Of PyTorch and of the export, from PyTorch in float64, for the output that differs most; None where the
            difference is within the tolerance.
    """

    size: tuple[int, int, int]
    difference: float
    errors: tuple[float, float] | None = None


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference, in units of the root mean square of ``ours`` where that is above 1.

    Raises:
        ExportError: The shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ExportError(f"shape {tuple(theirs.shape)} where PyTorch gives {tuple(ours.shape)}")
    ours, theirs = ours.double(), theirs.double()
    if not ours.numel():
        return 0.0
    unit = ours.square().mean().sqrt().clamp_min(1)
    worst = ((ours - theirs).abs().amax() / unit).item()
    return worst if worst == worst else float("inf")


def check(
    network: Exportable,
    run: Runner,
    sizes: Sequence[tuple[int, int, int]],
    tolerance: float,
    tick: Callable[[], object],
) -> list[Checked]:
    """Compares an export with the network on images of several sizes.

    A deep network may amplify the rounding of fp32 beyond the tolerance. Where PyTorch's own output is further than
    that from float64's, the export has to be as near to float64, within `MARGIN`.

    Args:
        network: What was exported.
        run: What runs the export.
        sizes: Batch, height and width of the images.
        tolerance: The largest `difference` that is let through.
        tick: Called after each size.

    Raises:
        ExportError: An output differs by more, or the export does not run on a size that PyTorch runs on.
    """
    checked = []
    for size in sizes:
        checked.append(_check_size(network, run, size, tolerance))
        tick()
    return checked


def _check_size(network: Exportable, run: Runner, size: tuple[int, int, int], tolerance: float) -> Checked:
    images, where = network.images(*size), "{} × {} × {}".format(*size)
    ours = _run(network.model, images)
    try:
        theirs = run(images)
    # Runtimes raise classes of their own.
    except Exception as error:
        raise ExportError(f"the export does not run on images of {where}: {first_line(error)}") from error
    found = {}
    for i, (name, a, b) in enumerate(zip(network.outputs, ours, theirs, strict=True)):
        try:
            found[i] = difference(a, b)
        except ExportError as error:
            raise ExportError(f"output {name} on images of {where}: {error}") from None
    worst = max(found, key=found.__getitem__)
    if found[worst] <= tolerance:
        return Checked(size, found[worst])
    truth = _run(copy.deepcopy(network.model).double(), images.double())
    errors = {i: (difference(truth[i], ours[i]), difference(truth[i], theirs[i])) for i in found}
    for i, (own, other) in errors.items():
        if found[i] > tolerance and not other <= max(tolerance, MARGIN * own):
            raise ExportError(
                f"output {network.outputs[i]} differs from PyTorch's by {found[i]:.1e} on images of {where}, more "
                f"than {tolerance:.0e} (from float64: PyTorch {own:.1e}, the export {other:.1e}): nothing is "
                "written. Export to another format, or, if that is near enough for you, give a larger --tolerance"
            )
    return Checked(size, found[worst], errors[worst])


def first_line(error: Exception) -> str:
    """What an error says in its first line, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _run(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return flatten(model(images))
