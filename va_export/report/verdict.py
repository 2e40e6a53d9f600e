"""parity.json as typed checks, and the verdict over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from va_export.report import figures

STAGES: Mapping[str, str] = {
    "visual_tokens": "vision tower and projector",
    "sharing_score": "Subspace-to-Scaler unit",
    "score_graph": "the same as the bundle's component",
    "prefill_logits": "the first new token's logits",
    "decode_logits": "the later tokens' logits",
    "greedy_loop": "tokens of the decode loop on the device, against those chosen on the host",
}
"""What a stage of the checks compares."""


@dataclass(frozen=True)
class Tolerance:
    """|error| ≤ atol + rtol · |reference| and cosine ≥ `cosine`; None where there is no such bound."""

    atol: float | None
    rtol: float | None
    cosine: float | None

    def __str__(self) -> str:
        if self.atol is None:  # a null in the file: errors are not bounded element by element
            return "cosine only" if self.cosine is not None else "none"
        return f"{figures.error(self.atol)} + {figures.error(self.rtol or 0.0)}·|ref|"


@dataclass(frozen=True)
class Check:
    """One comparison of the bundle with the reference; None where a figure is missing or not finite.

    Attributes:
        tolerance_used: the error's largest share of what the tolerance allows, 1 at the limit.
        partition: how a score's subspaces stand to the reference's; None for other stages and in older bundles.
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

    @property
    def meaning(self) -> str:
        """What the stage compares, in words; empty for a stage that this page does not know."""
        return STAGES.get(self.stage, "")

    @property
    def outcome(self) -> str:
        """How near the check came to failing, or why it failed."""
        if self.nan or self.inf:
            return f"{self.nan} NaN and {self.inf} infinite values"
        floor = self.tolerance.cosine
        if not self.passed and self.cosine is not None and floor is not None and self.cosine < floor:
            return f"cosine {figures.cosine(self.cosine)}, below {figures.cosine(floor)}"
        if self.tolerance.atol is None:
            return f"cosine {figures.cosine(self.cosine)}"
        if self.partition == "worse":
            return "subspaces that cut more than the reference's"
        if self.tolerance_used is None:
            return "no figure"
        outcome = f"{figures.percent(self.tolerance_used)} of its tolerance"
        if self.partition == "undetermined":
            return f"{outcome}, for its own subspaces: the frames leave them open"
        return f"{outcome}, for its own subspaces" if self.partition == "as good" else outcome

    @property
    def badness(self) -> tuple[bool, float]:
        """Orders checks from the safest to the worst: failed ones last, then by the share of tolerance used."""
        used = self.tolerance_used
        return (not self.passed, math.inf if self.nan or self.inf else 0.0 if used is None else used)


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens (reference, bundle), step by step; None where one of the two ended earlier."""

    anchors: bool | None
    steps: tuple[tuple[int | None, int | None], ...]

    @property
    def matching(self) -> int:
        """How many steps from the start are equal."""
        return next((place for place, (left, right) in enumerate(self.steps) if left != right), len(self.steps))


@dataclass(frozen=True)
class ParityRun:
    """The checks of one backend with one form of attention."""

    backend: str
    device: str
    attention: str
    passed: bool
    checks: tuple[Check, ...]
    greedy: tuple[Greedy, ...]


@dataclass(frozen=True)
class Verdict:
    """The page's first line.

    Attributes:
        word: PASS, FAIL or NOT CHECKED; nothing passes without a check.
        reason: why, in one line.
        checks: how many comparisons there are.
        within: how many of them are within tolerance.
        worst: the one nearest to failing, or the one that failed worst.
    """

    word: str
    reason: str
    checks: int
    within: int
    worst: Check | None


def read_parity(data: Mapping[str, Any]) -> tuple[ParityRun, ...]:
    """The runs of parity.json."""
    return tuple(
        ParityRun(
            backend=str(run.get("backend", figures.UNKNOWN)),
            device=str(run.get("device", figures.UNKNOWN)),
            attention=str(run.get("attention", figures.UNKNOWN)),
            passed=run.get("passed") is True,
            checks=tuple(_check(check) for check in run.get("checks") or ()),
            greedy=tuple(_greedy(greedy) for greedy in run.get("greedy") or ()),
        )
        for run in data.get("runs") or ()
    )


def judge(parity: Mapping[str, Any] | None, runs: tuple[ParityRun, ...]) -> Verdict:
    """The verdict of parity.json (None: there is none), a run and a check having the power to fail it."""
    checks = [(run, check) for run in runs for check in run.checks]
    if parity is None or not checks:
        why = "the bundle has no parity.json" if parity is None else "parity.json holds no checks"
        return Verdict("NOT CHECKED", f"{why}, so nothing is known about its numbers", 0, 0, None)
    within = sum(check.passed for _, check in checks)
    run, worst = max(checks, key=lambda pair: pair[1].badness)
    reason = f"{within} of {len(checks)} checks within tolerance; worst: {worst.stage}"
    if len(runs) > 1:
        reason += f" ({run.backend}, {run.attention} attention)"
    reason += f", {worst.outcome}"
    agreed = parity.get("passed") is True and all(run.passed for run in runs)
    if within == len(checks) and not agreed:
        reason += "; yet parity.json records a failure"
    word = "PASS" if agreed and within == len(checks) else "FAIL"
    return Verdict(word, reason, len(checks), within, worst)


def _check(data: Mapping[str, Any]) -> Check:
    bounds = data.get("tolerance") or {}
    return Check(
        stage=str(data.get("stage", figures.UNKNOWN)),
        anchors=data.get("anchors"),
        max_abs=_finite(data.get("max_abs")),
        mean_abs=_finite(data.get("mean_abs")),
        max_rel=_finite(data.get("max_rel")),
        mean_rel=_finite(data.get("mean_rel")),
        cosine=_finite(data.get("cosine")),
        nan=int(data.get("nan") or 0),
        inf=int(data.get("inf") or 0),
        top1_agreement=_finite(data.get("top1_agreement")),
        tolerance=Tolerance(*(_finite(bounds.get(name)) for name in ("atol", "rtol", "cosine"))),
        tolerance_used=_finite(data.get("tolerance_used")),
        passed=data.get("passed") is True,
        partition=data.get("partition"),
    )


def _greedy(data: Mapping[str, Any]) -> Greedy:
    reference, bundle = list(data.get("reference") or ()), list(data.get("bundle") or ())
    steps = max(len(reference), len(bundle))
    reference += [None] * (steps - len(reference))
    bundle += [None] * (steps - len(bundle))
    return Greedy(data.get("anchors"), tuple(zip(reference, bundle, strict=True)))


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
