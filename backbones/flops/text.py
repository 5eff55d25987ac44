"""A measurement in words, and a row of a table."""

from backbones.flops.measure import GROUPS, Measurement
from backbones.flops.published import find_published


def describe_measurement(name: str, size: tuple[int, int], found: Measurement) -> str:
    """What `defocus flops` prints of one model."""
    lines = [
        f"{name}, one image of {size[0]} x {size[1]}",
        f"  FLOPs       {found.flops / 1e9:12.2f} G   a multiply-add counts two",
        f"  MACs        {found.macs / 1e9:12.2f} G   half of them: what most papers call FLOPs",
        f"  parameters  {found.parameters / 1e6:12.2f} M",
        f"  activations {in_bytes(found.saved_bytes):>14} kept for backward, fp32",
        f"              {in_bytes(found.peak_bytes):>14} at most without gradients",
    ]
    published = find_published(name, size)
    if published is not None:
        lines.append(f"  published   {published.giga:12.2f} G   multiply-adds ({published.source})")
    lines += _shares("FLOPs by operator", found.by_operator, found.flops)
    lines += _shares("FLOPs by module", found.by_module, found.flops)
    lines.append("  not counted: calls, numbers that came out")
    for entry in found.uncounted:
        lines.append(f"    {entry['operator']:<44} {entry['calls']:7,} {entry['elements']:16,}")
    if found.backends:
        backends = ", ".join(f"{operation}: {backend}" for operation, backend in found.backends.items())
        lines.append(f"  backends, on which memory depends and FLOPs do not: {backends}")
    if found.assumed:
        questions = ", ".join(f"{operator} ({calls})" for operator, calls in found.assumed.items())
        lines.append(f"  answered with their upper limit, for they depend on the image: {questions}")
    lines.append(f"  torch {found.torch}")
    return "\n".join(lines)


def in_bytes(number: int) -> str:
    """A number of bytes in the unit that suits it."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def unknown_of(found: Measurement) -> list[str]:
    """Names of the operators that were not counted and belong to no harmless group."""
    return [entry["operator"] for entry in found.uncounted if entry["operator"] not in GROUPS]


def _shares(title: str, parts: dict[str, int], total: int, shown: int = 12) -> list[str]:
    """The largest parts with their shares; what is below a thousandth of all is left out."""
    largest = sorted(parts.items(), key=lambda item: -item[1])
    lines = [f"  {title}"]
    for name, number in largest[:shown]:
        if number >= total / 1000:
            lines.append(f"    {name:<44} {number / 1e9:12.3f} G  {number / total:6.1%}")
    return lines
