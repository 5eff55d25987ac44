"""What the doctor writes down."""

from dataclasses import dataclass, field


@dataclass
class Choice:
    """What an operation runs on.

    Attributes:
        operation: Its name.
        device: Device type.
        variable: The environment variable that forces a backend.
        taken: The backend, or None.
        reason: Why there is none.
        refused: Why the others cannot run, by name.
        spare: Others that could run, whether or not they need to be named.
    """

    operation: str
    device: str
    variable: str
    taken: str | None = None
    reason: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    spare: list[str] = field(default_factory=list)


@dataclass
class Check:
    """A backend against the definition, at one size in one dtype.

    Attributes:
        operation: Its name.
        backend: Its name.
        device: Device type, or a device with its number.
        size: In words.
        dtype: Of the sequences.
        truth: What it was compared with.
        error: The largest error of the output and all gradients, relative to the largest value of each.
        worst: Which of them has it.
        limit: The largest allowed.
        same_bits: Whether two runs gave the same bits; None where not asked.
        may_differ: Why they need not, by the backend's own word.
        graph: What a captured CUDA graph gave: "same", "wrong: …", "not captured: …"; empty where not asked.
        failure: What was raised.
    """

    operation: str
    backend: str
    device: str
    size: str
    dtype: str
    truth: str = ""
    error: float | None = None
    worst: str = ""
    limit: float = 0.0
    same_bits: bool | None = None
    may_differ: str = ""
    graph: str = ""
    failure: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words; nothing where all is right."""
        if self.failure:
            return [f"raised {self.failure}"]
        found = []
        # A NaN is no error below the limit either.
        if self.error is not None and not self.error <= self.limit:
            found.append(f"{self.worst} is off by {self.error:.1e} (allowed {self.limit:.1e})")
        if self.same_bits is False and not self.may_differ:
            found.append("two runs gave different bits")
        if self.graph.startswith("wrong"):
            found.append(f"a captured CUDA graph is {self.graph}")
        return found


@dataclass
class Speed:
    """A backend's time and memory at the published size.

    Attributes:
        operation: Its name.
        backend: Its name.
        device: Device type.
        size: In words.
        dtype: Of the sequences.
        forward: Seconds of a forward pass.
        both: Seconds of a forward and a backward pass.
        peak_bytes: The most memory that both took, above what was there.
        failure: What was raised; the figures are None then.
    """

    operation: str
    backend: str
    device: str
    size: str
    dtype: str
    forward: float | None = None
    both: float | None = None
    peak_bytes: int | None = None
    failure: str = ""


@dataclass
class Finding:
    """Something that the user should know.

    Attributes:
        severity: "wrong" makes the exit status 1; "slow" and "note" do not.
        message: What it is.
        cure: What to do about it, where there is something.
    """

    severity: str
    message: str
    cure: str = ""


def in_words(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
