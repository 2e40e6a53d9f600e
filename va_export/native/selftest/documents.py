"""What the self-test is asked and what it finds, as it lies on the disk."""

from __future__ import annotations

import statistics

from va_export.documents import Form
from va_export.native.kernels import SIMPLE, Phase

# A kernel must beat the plain one by this, or chance would choose.
_LEAST_GAIN = 0.95


class AttentionShape(Form, frozen=True):
    """What a model asks of the attention kernels: sizes near these are tested, `tuned_length` positions are timed."""

    dtype: str
    query_heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    capacity: int
    tuned_length: int


class Asked(Form, frozen=True):
    """What the self-test's process is given; kernels in the order in which they are to be tested."""

    library: str
    device: int
    shape: AttentionShape
    kernels: tuple[tuple[str, str], ...]


class Finding(Form, frozen=True):
    """What became of one kernel.

    Attributes:
        phase: name of its phase.
        fault: why it is not taken; empty for one that passed.
        milliseconds: of a launch, each measured; empty for one that did not pass.
        is_known: False where the whole test was stopped from outside, which may not be the kernel's fault.
    """

    phase: str
    kernel: str
    fault: str = ""
    milliseconds: tuple[float, ...] = ()
    is_known: bool = True

    @property
    def passed(self) -> bool:
        """Whether every check was right."""
        return not self.fault

    @property
    def median(self) -> float:
        """Milliseconds; 0 for a kernel that did not pass."""
        return statistics.median(self.milliseconds) if self.milliseconds else 0.0


class Record(Form, frozen=True):
    """What is kept of a self-test.

    Attributes:
        key: what it holds for: the GPU, the driver, the library, the shape.
        findings: of the kernels that were tested.
        running: phase and kernel that were being tested when this was written; None in a finished record.
    """

    key: dict[str, str | int]
    findings: tuple[Finding, ...] = ()
    running: tuple[str, str] | None = None

    def of(self, phase: Phase) -> tuple[Finding, ...]:
        """What was found of a phase's kernels."""
        return tuple(finding for finding in self.findings if finding.phase == phase.name)

    def passed(self, phase: Phase) -> bool:
        """Whether any kernel of a phase did."""
        return any(finding.passed for finding in self.of(phase))

    def choice(self, phase: Phase) -> str:
        """The fastest kernel that passed, if it beats the plain one by 5 %; the plain one else."""
        times = {finding.kernel: finding.median for finding in self.of(phase) if finding.passed}
        if not times:
            return SIMPLE
        fastest = min(times, key=lambda kernel: times[kernel])
        return fastest if SIMPLE not in times or times[fastest] < _LEAST_GAIN * times[SIMPLE] else SIMPLE
