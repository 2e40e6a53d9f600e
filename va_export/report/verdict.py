"""The verdict over all checks of parity.json, and what each of them says in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from va_export.proof.documents import Check, Greedy, Parity, Tolerance
from va_export.proof.verdict import scope
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


def judge(parity: Parity | None) -> Verdict:
    """The verdict of parity.json (None: there is none), a run and a check having the power to fail it."""
    runs = parity.runs if parity else ()
    checks = [(run, check) for run in runs for check in run.checks]
    if parity is None or not checks:
        why = "the bundle has no parity.json" if parity is None else "parity.json holds no checks"
        return Verdict("NOT CHECKED", f"{why}, so nothing is known about its numbers", 0, 0, None)
    within = sum(check.passed for _, check in checks)
    run, worst = max(checks, key=lambda pair: _badness(pair[1]))
    reason = f"{scope(parity)}: {within} of {len(checks)} checks within tolerance; worst: {worst.stage}"
    if len(runs) > 1:
        reason += f" ({run.backend}, {run.attention} attention)"
    reason += f", {outcome(worst)}"
    agreed = parity.passed and all(run.passed for run in runs)
    if within == len(checks) and not agreed:
        reason += "; yet parity.json records a failure"
    word = "PASS" if agreed and within == len(checks) else "FAIL"
    return Verdict(word, reason, len(checks), within, worst)


def meaning(stage: str) -> str:
    """What a stage of the checks compares, in words; empty for one that this page does not know."""
    return STAGES.get(stage, "")


def outcome(check: Check) -> str:
    """How near the check came to failing, or why it failed."""
    if check.nan or check.inf:
        return f"{check.nan} NaN and {check.inf} infinite values"
    floor = check.tolerance.cosine
    if not check.passed and check.cosine is not None and check.cosine < floor:
        return f"cosine {figures.cosine(check.cosine)}, below {figures.cosine(floor)}"
    if check.tolerance.atol is None:
        return f"cosine {figures.cosine(check.cosine)}"
    if check.partition == "worse":
        return "subspaces that cut more than the reference's"
    if check.tolerance_used is None:
        return "no figure"
    used = f"{figures.percent(check.tolerance_used)} of its tolerance"
    if check.partition == "undetermined":
        return f"{used}, for its own subspaces: the frames leave them open"
    return f"{used}, for its own subspaces" if check.partition == "as good" else used


def bounds(tolerance: Tolerance) -> str:
    """A tolerance in words."""
    if tolerance.atol is None:  # errors are not bounded element by element
        return "cosine only"
    return f"{figures.error(tolerance.atol)} + {figures.error(tolerance.rtol)}·|ref|"


def steps(greedy: Greedy) -> list[tuple[int | None, int | None]]:
    """Greedy tokens (reference, bundle), step by step; None where one of the two ended earlier."""
    return list(zip_longest(greedy.reference, greedy.bundle))


def _badness(check: Check) -> tuple[bool, float]:
    """Orders checks from the safest to the worst: failed ones last, then by the share of tolerance used."""
    return not check.passed, math.inf if check.nan or check.inf else check.tolerance_used or 0.0
