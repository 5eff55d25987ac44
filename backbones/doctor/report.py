"""The page in Markdown, and the same as data."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from backbones.doctor.diagnosis import Diagnosis
from backbones.doctor.records import Check, Choice, Speed
from defocus_eval.markdown import plain_table

FORMAT = 1
_TITLES = {"wrong": "**Wrong**", "slow": "Slow", "note": "Note"}


def to_markdown(diagnosis: Diagnosis) -> str:
    """The whole page, with what matters first."""
    parts = [
        "# De-focus doctor",
        _findings(diagnosis),
        "## Machine",
        _table(("what", "here"), diagnosis.machine.items()),
        "## What each operation runs on",
        _table(
            ("operation", "device", "runs on", "could run", "cannot run", "variable"), map(_choice, diagnosis.choices)
        ),
        "## Against the definition",
        "The largest error of the output and of all gradients, relative to the largest value of each.",
        _table(
            ("operation", "device", "backend", "size", "dtype", "largest error", "allowed", "two runs", "CUDA graph"),
            map(_check, diagnosis.checks),
        ),
        "## Time and memory",
        _table(
            ("operation", "device", "backend", "size", "dtype", "forward ms", "both ms", "both / fastest", "peak MiB"),
            (_speed(record, diagnosis.speeds) for record in diagnosis.speeds),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def to_json(diagnosis: Diagnosis) -> str:
    """The same as data; ``status`` is the exit status. What is no number is a string, for JSON has no NaN."""
    content = dict(format=FORMAT, status=diagnosis.status, **asdict(diagnosis))
    for record, check in zip(content["checks"], diagnosis.checks, strict=True):
        record["faults"] = check.faults
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    if isinstance(content, float) and content - content != 0:
        return str(content)
    return content


def _findings(diagnosis: Diagnosis) -> str:
    ordered = sorted(diagnosis.findings, key=lambda finding: list(_TITLES).index(finding.severity))
    lines = [f"- {_TITLES[f.severity]}: {f.message}." + (f" Cure: {f.cure}." if f.cure else "") for f in ordered]
    if not diagnosis.status:
        lines.insert(0, "Every backend that runs here does what the definition says.")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return plain_table(head, ([_cell(cell) for cell in row] for row in rows))


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _choice(choice: Choice) -> Sequence[str]:
    refused = "; ".join(f"{name}: {reason}" for name, reason in choice.refused.items())
    taken = choice.taken or f"nothing: {choice.reason}"
    return choice.operation, choice.device, taken, ", ".join(choice.spare), refused, choice.variable


def _check(check: Check) -> Sequence[str]:
    if check.failure or check.error is None:
        error = f"**raised** {check.failure}"
    else:
        error = f"{check.error:.1e}, {check.worst}"
        error = error if check.error <= check.limit else f"**{error}**"
    same = {None: "", True: "same bits", False: "**differ**"}[check.same_bits]
    if check.same_bits is False and check.may_differ:
        same = f"differ: {check.may_differ}"
    where = (check.operation, check.device, check.backend, check.size, check.dtype)
    return *where, error, f"{check.limit:.1e}", same, check.graph


def _speed(record: Speed, speeds: Sequence[Speed]) -> Sequence[str]:
    where = (record.operation, record.device, record.backend, record.size, record.dtype)
    if record.both is None or record.forward is None or record.peak_bytes is None:
        return *where, f"**raised** {record.failure}", "", "", ""
    rivals = [
        other.both
        for other in speeds
        if other.both is not None
        and (other.operation, other.device, other.dtype) == (record.operation, record.device, record.dtype)
    ]
    ratio = f"{record.both / min(rivals):.2f}"
    figures = (f"{record.forward * 1e3:.1f}", f"{record.both * 1e3:.1f}", ratio, f"{record.peak_bytes / 2**20:.0f}")
    return *where, *figures
