"""What parity.json and latency.json hold; written by an export and by `va-check`, read by the report."""

from __future__ import annotations

from va_export.documents import Form


class Tolerance(Form, frozen=True):
    """|error| ≤ atol + rtol · |reference| everywhere, and cosine ≥ `cosine`; an atol of None bounds no error."""

    atol: float | None
    rtol: float
    cosine: float


class Check(Form, frozen=True):
    """One comparison of the bundle with the reference; None where a figure is not finite.

    Attributes:
        anchors: whether with them; None where they make no difference.
        max_rel, mean_rel: relative to the reference's root mean square.
        nan, inf: how many values of the bundle are so.
        top1_agreement: share of positions at which the largest logit is the same one.
        tolerance_used: the error's largest share of what the tolerance allows, 1 at the limit.
        partition: of a score, how its subspaces stand to the reference's (`va_export.proof.partition`).
    """

    stage: str
    anchors: bool | None
    max_abs: float | None
    mean_abs: float | None
    max_rel: float | None
    mean_rel: float | None
    cosine: float | None
    nan: int
    inf: int
    top1_agreement: float | None
    tolerance: Tolerance
    tolerance_used: float | None
    passed: bool
    partition: str | None = None


class OwnScore(Form, frozen=True):
    """How near the score of the bundle's own visual tokens comes to the reference's."""

    cosine: float | None
    max_abs: float | None
    label_agreement: float


class Greedy(Form, frozen=True):
    """Greedy tokens of the bundle left to itself, and how many from the start are the reference's."""

    anchors: bool
    reference: tuple[int, ...]
    bundle: tuple[int, ...]
    matching_prefix: int


class ParityRun(Form, frozen=True):
    """The checks of one backend with one form of attention."""

    backend: str
    device: str
    attention: str
    passed: bool
    checks: tuple[Check, ...]
    greedy: tuple[Greedy, ...] = ()
    score_end_to_end: OwnScore | None = None

    @property
    def is_finite(self) -> bool:
        """Whether every stage gave numbers."""
        return not any(check.nan or check.inf for check in self.checks)


class NotRun(Form, frozen=True):
    """What parity did not cover, why, and the command that covers it."""

    what: str
    reason: str
    command: str


class Parity(Form, frozen=True):
    """parity.json."""

    passed: bool
    precision: str
    reference: str
    runs: tuple[ParityRun, ...]
    not_run: tuple[NotRun, ...] = ()


class StageTimes(Form, frozen=True):
    """Order statistics of one stage's time over its iterations; `cov` is the standard deviation over the mean."""

    iterations: int
    min_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cov: float


class PeakMemory(Form, frozen=True):
    """Bytes: the process's from its start, and the most in use on the GPU after a round (None: no GPU)."""

    host: int
    device: int | None


class LatencyRun(Form, frozen=True):
    """One measured configuration, with anchors or without.

    Attributes:
        stages: the host's time by stage.
        gpu_stages: the GPU's own by events; None without them.
        kernels: which of the plugin library's ran on each GPU and why.
    """

    backend: str
    device: str
    attention: str
    anchors: bool
    warmup: int
    iterations: int
    new_tokens: int
    stages: dict[str, StageTimes]
    peak_memory_bytes: PeakMemory
    gpu_stages: dict[str, StageTimes] | None = None
    kernels: tuple[str, ...] = ()

    def median_ms(self, stage: str) -> float | None:
        """The median of a stage; None where it was not measured."""
        return self.stages[stage].median_ms if stage in self.stages else None


class Environment(Form, frozen=True):
    """The machine and the software that times were taken with, as `va_export.machine.environment` finds them."""

    cpu: str
    cores: int | None
    memory_bytes: int
    gpu: str | None
    os: str
    python: str
    libraries: dict[str, str]


class Latency(Form, frozen=True):
    """latency.json."""

    environment: Environment
    runs: tuple[LatencyRun, ...]
