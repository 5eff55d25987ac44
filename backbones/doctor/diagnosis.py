"""What follows from the checks: what is wrong, what is slow, and the variable that turns it off."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from backbones.benchmark.cases import Case
from backbones.doctor import checks, speed
from backbones.doctor.records import Check, Choice, Finding, Speed, in_words
from backbones.ops.dispatch import Operation

# How many times the time of another backend the chosen one may take before that is said.
SLOWER = 1.15


@dataclass
class Diagnosis:
    """All that was found.

    Attributes:
        machine: Facts by name.
        choices: What each operation runs on.
        checks: Backends against the definition.
        speeds: Their times.
        findings: What follows.
    """

    machine: dict[str, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 1 where anything is wrong."""
        return int(any(finding.severity == "wrong" for finding in self.findings))


def choose(operation: Operation, device: str) -> Choice:
    """What an operation runs on, and why not on the others. A refusal that raises is one."""
    choice = Choice(operation.name, device, operation.environment)
    for backend in operation.backends.values():
        try:
            reason = backend.refusal(device)
        except Exception as error:
            reason = f"its test raised {in_words(error)}"
        if reason is None:
            choice.spare.append(backend.name)
        else:
            choice.refused[backend.name] = " ".join(reason.split())
    try:
        choice.taken = operation.select(device).name
    except Exception as error:
        choice.reason = in_words(error)
    choice.spare = [name for name in choice.spare if name != choice.taken]
    return choice


def examine(
    cases: Mapping[str, Case], devices: Sequence[str], say: Callable[[str], None], diagnosis: Diagnosis
) -> None:
    """Fills in choices, checks and times.

    Args:
        cases: The operations by name.
        devices: Device types.
        say: Is told what is done.
        diagnosis: Is filled in as it goes, so that an interruption loses nothing.
    """
    for device in devices:
        for case in cases.values():
            diagnosis.choices.append(choose(case.operation, device))
        try:
            for case in cases.values():
                found = []
                for check in checks.examine(case, device, say):
                    found.append(check)
                    diagnosis.checks.append(check)
                wrong = {check.backend for check in found if check.faults}
                diagnosis.speeds += speed.time_backends(case, device, wrong, say)
        except checks.LostDevice:
            message = f"{device} does not answer any more after the last check: its other checks were not made"
            diagnosis.findings.append(Finding("wrong", message, "start again with that backend turned off"))


def conclude(diagnosis: Diagnosis) -> list[Finding]:
    """What is wrong or slow, with its cure."""
    findings = []
    for choice in diagnosis.choices:
        if choice.taken is None:
            message = f"{choice.operation} cannot run on {choice.device}: {choice.reason}"
            findings.append(Finding("wrong", message, f"look at {choice.variable}"))
        findings += _wrong(choice, diagnosis)
        findings += _slow(choice, diagnosis)
    return findings


def _wrong(choice: Choice, diagnosis: Diagnosis) -> Iterable[Finding]:
    """One finding for each backend with faults."""
    faulty: dict[str, list[Check]] = {}
    for check in _of(diagnosis.checks, choice):
        if check.faults:
            faulty.setdefault(check.backend, []).append(check)
    for record in _of(diagnosis.speeds, choice):
        if record.failure:
            check = Check(record.operation, record.backend, record.device, record.size, record.dtype)
            check.failure = f"{record.failure} where it was timed"
            faulty.setdefault(record.backend, []).append(check)
    for name, failed in faulty.items():
        first = failed[0]
        others = f", and {len(failed) - 1} more of its checks failed" if len(failed) > 1 else ""
        message = (
            f"{choice.operation}: the backend {name} is wrong on {first.device} "
            f"({first.size}; {first.dtype}): {'; '.join(first.faults)}{others}"
        )
        if name != choice.taken:
            cure = f"it is not taken here; do not name it in {choice.variable}"
        else:
            cure = _cure(choice, diagnosis, set(faulty))
        yield Finding("wrong", message, cure)


def _slow(choice: Choice, diagnosis: Diagnosis) -> Iterable[Finding]:
    """The backend that is taken, where another that is right takes less time for forward and backward."""
    timed = [record for record in _of(diagnosis.speeds, choice) if record.both is not None]
    for dtype in dict.fromkeys(record.dtype for record in timed):
        by_name = {record.backend: record for record in timed if record.dtype == dtype}
        mine = by_name.pop(choice.taken, None)
        fastest = min(by_name.values(), key=lambda record: record.both, default=None)
        if mine is None or fastest is None or mine.both <= SLOWER * fastest.both:
            continue
        message = (
            f"{choice.operation}: the backend {mine.backend} takes {mine.both / fastest.both:.2f} times as long as "
            f"{fastest.backend} on {choice.device} ({mine.size}; {dtype}; forward and backward)"
        )
        yield Finding("slow", message, _cure(choice, diagnosis, set(), fastest.backend))


def _cure(choice: Choice, diagnosis: Diagnosis, faulty: set[str], wanted: str | None = None) -> str:
    """The setting that takes another backend, for all operations that the variable forces."""
    together = [c for c in diagnosis.choices if c.variable == choice.variable and c.device == choice.device]
    spare = [name for name in ([wanted] if wanted else choice.spare) if name not in faulty]
    for name in spare:
        if all(name in (other.taken, *other.spare) for other in together):
            also = [other.operation for other in together if other is not choice and other.taken != name]
            return f"set {choice.variable}={name}" + (f" (which {', '.join(also)} then takes, too)" if also else "")
    return f"no setting of {choice.variable} helps; send this page to us"


def _of(records, choice: Choice) -> list:
    """The records of an operation on a device type; `cuda:1` is one of cuda."""
    return [
        record
        for record in records
        if record.operation == choice.operation and record.device.partition(":")[0] == choice.device
    ]
