"""Parity: a bundle on one backend against the float32 reference that it carries, stage by stage.

Every stage is given the reference's inputs where the stage before could blur the picture: logits are compared with
the reference's gains and with its tokens fed back, so that one flipped label or one near tie does not hide what the
decoder does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from va_export.errors import VaExportError
from va_export.proof.documents import Check, Greedy, NotRun, OwnScore, Parity, ParityRun, Tolerance
from va_export.proof.partition import SAME, WORSE, ReferencePartition, label_agreement
from va_export.proof.reference import SIDES, prepared_of
from va_export.proof.tolerances import (
    SCORE_ATOL,
    SCORE_COSINE,
    SCORE_GRAPH_ATOL,
    count_roundings,
    most_copies,
    tolerance_for,
)
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.backends.backend import Backend, has_score_graph
from va_export.runtime.bundle import Bundle
from va_export.runtime.scoring import Scored, score_visual_tokens

Array = npt.NDArray[Any]


def compare(
    stage: str, anchors: bool | None, actual: Array, expected: Array, tolerance: Tolerance, *, top1: bool = False
) -> Check:
    """Compare two arrays of one shape. Relative errors are taken to the reference's root mean square, not element by
    element: a reference near 0 says nothing about precision.
    """
    actual64, expected64 = actual.astype(np.float64), expected.astype(np.float64)
    if actual64.shape != expected64.shape:
        raise ValueError(f"{stage}: shapes {actual64.shape} and {expected64.shape} differ")
    nan, inf = int(np.isnan(actual64).sum()), int(np.isinf(actual64).sum())
    finite = np.nan_to_num(actual64, nan=0.0, posinf=0.0, neginf=0.0)
    error = np.abs(finite - expected64)
    scale = float(np.sqrt(np.mean(expected64**2))) or 1.0
    cosine = cosine_of(finite, expected64)
    bound = (math.inf if tolerance.atol is None else tolerance.atol) + tolerance.rtol * np.abs(expected64)
    with np.errstate(invalid="ignore", divide="ignore"):
        used = float(np.max(np.where(error == 0, 0.0, error / bound), initial=0.0))
    agreement = float(np.mean(finite.argmax(-1) == expected64.argmax(-1))) if top1 else None
    return Check(
        stage=stage,
        anchors=anchors,
        max_abs=_finite(float(error.max(initial=0.0))),
        mean_abs=_finite(float(error.mean()) if error.size else 0.0),
        max_rel=_finite(float(error.max(initial=0.0)) / scale),
        mean_rel=_finite(float(error.mean()) / scale if error.size else 0.0),
        cosine=_finite(cosine),
        nan=nan,
        inf=inf,
        top1_agreement=agreement,
        tolerance=tolerance,
        tolerance_used=_finite(min(used, 1e30)),
        passed=nan == 0 and inf == 0 and used <= 1.0 and cosine >= tolerance.cosine,
    )


def cosine_of(actual: Array, expected: Array) -> float:
    """Of the angle between two arrays; of zeros 1 where both are, else 0."""
    norm = float(np.linalg.norm(actual) * np.linalg.norm(expected))
    if norm == 0:
        return float(not actual.any() and not expected.any())
    return min(1.0, float((actual * expected).sum() / norm))


def check_parity(
    bundle: Bundle, reference: Mapping[str, Array], atol: float | None = None, rtol: float | None = None
) -> ParityRun:
    """Run every stage of a bundle on the reference's frames; one entry of `runs` in parity.json.

    Args:
        atol, rtol: replace the tolerances that follow from the precision.
    """
    data, prepared = bundle.manifest.data, prepared_of(reference)
    precision: str = data.precision
    vision, text = data.model.vision, data.model.text
    # What makes patches, and what projects them, count as a layer of the tower.
    seen = count_roundings(precision, vision.num_layers + 1, vision.hidden_size, vision.intermediate_size)
    said = seen + count_roundings(precision, text.num_layers, text.hidden_size, text.intermediate_size)
    checks: list[Check] = []

    visual = bundle.backend.run("vision", prepared.vision_inputs)["visual_tokens"]
    expected = reference["visual_tokens"]
    if visual.shape != expected.shape:
        raise VaExportError(
            f"the reference's frames give visual tokens {visual.shape}, and it holds {expected.shape}",
            where=bundle.manifest.directory / "reference.npz",
            fix="copy or export the bundle again",
        )
    checks.append(
        compare("visual_tokens", None, visual, expected, tolerance_for(precision, seen, expected, atol, rtol))
    )
    if not np.isfinite(visual).all():  # nothing behind it can be run
        return _run_entry(bundle, checks, None, [])
    tokens = scored_tokens(reference, text.hidden_size)
    partition = ReferencePartition(tokens, reference["labels"], bundle.score_settings)
    scorers: list[tuple[str, Backend | None, float]] = [("sharing_score", None, SCORE_ATOL)]
    if has_score_graph(bundle.manifest, bundle.backend.name):
        scorers.append(("score_graph", bundle.backend, SCORE_GRAPH_ATOL))
    for stage, scorer, bound in scorers:
        scored = score_visual_tokens(tokens, bundle.score_settings, backend=scorer)
        tolerance = Tolerance(bound if atol is None else atol, rtol or 0.0, SCORE_COSINE)
        checks.append(_judge_score(stage, scored, reference, partition, tolerance))
    greedy: list[Greedy] = []
    copies = most_copies(reference["frames"])
    for anchored, side in SIDES:
        expected = reference[f"{side}_logits"]
        actual = _teacher_forced(bundle, reference, anchored, side)
        tolerance = tolerance_for(precision, said, expected, atol, rtol, copies)
        checks.append(compare("prefill_logits", anchored, actual[:1], expected[:1], tolerance, top1=True))
        if len(expected) > 1:
            checks.append(compare("decode_logits", anchored, actual[1:], expected[1:], tolerance, top1=True))
        if np.isfinite(actual).all():
            greedy.append(_greedy(bundle, reference, anchored, side, actual))
            if bundle.backend.has_greedy_loop:
                checks.append(_check_loop(bundle, reference, anchored, list(greedy[-1].bundle)))
    return _run_entry(
        bundle, checks, _own_score(bundle, visual[prepared.scored_rows, : text.hidden_size], reference), greedy
    )


def scored_tokens(reference: Mapping[str, Array], hidden_size: int) -> Array:
    """The visual tokens that are scored, without features for the decoder's first layers."""
    return reference["visual_tokens"][prepared_of(reference).scored_rows, :hidden_size]


def _judge_score(
    stage: str, scored: Scored, reference: Mapping[str, Array], partition: ReferencePartition, tolerance: Tolerance
) -> Check:
    """A score of the reference's visual tokens: against the reference's where the subspaces are the same, else against
    the right one for its own subspaces, which may be no worse than the reference's where the data determine them; and
    where the solver stopped at another step than float64, against float64's at that one."""
    verdict = partition.judge(scored.labels)
    expected = reference["sharing_score"] if verdict == SAME else partition.score_of(scored.labels)
    check = compare(stage, None, scored.sharing_score, expected, tolerance)
    if not check.passed and verdict == SAME and scored.iterations:
        at_its_step = partition.score_at(scored.labels, scored.iterations)
        if at_its_step is not None:
            check = compare(stage, None, scored.sharing_score, at_its_step, tolerance)
    return structs.replace(check, partition=verdict, passed=check.passed and verdict != WORSE)


def _run_entry(bundle: Bundle, checks: list[Check], own_score: OwnScore | None, greedy: list[Greedy]) -> ParityRun:
    return ParityRun(
        backend=bundle.backend.name,
        device=bundle.backend.device,
        attention=bundle.attention,
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        greedy=tuple(greedy),
        score_end_to_end=own_score,
    )


def _own_score(bundle: Bundle, visual: Array, reference: Mapping[str, Array]) -> OwnScore:
    """How near the score of the bundle's own visual tokens comes: reported, not judged, for the reasons that
    `va_export.proof.partition` gives."""
    scored = score_visual_tokens(visual, bundle.score_settings)
    cosine = cosine_of(scored.sharing_score.astype(np.float64), reference["sharing_score"].astype(np.float64))
    return OwnScore(
        cosine=_finite(cosine),
        max_abs=_finite(float(np.abs(scored.sharing_score - reference["sharing_score"]).max())),
        label_agreement=label_agreement(scored.labels, reference["labels"]),
    )


def _teacher_forced(bundle: Bundle, reference: Mapping[str, Array], anchored: bool, side: str) -> Array:
    gains = (reference["key_log_gain"], reference["value_gain"]) if anchored else (None, None)
    result = bundle.answer(
        prepared_of(reference),
        anchoring=Anchoring(anchored, key_log_gain=gains[0], value_gain=gains[1]),
        forced_tokens=reference[f"{side}_tokens"],
        return_logits=True,
    )
    assert result.logits is not None
    return result.logits


def _greedy(bundle: Bundle, reference: Mapping[str, Array], anchored: bool, side: str, forced_logits: Array) -> Greedy:
    """Greedy tokens of the bundle left to itself, its own scores included: reported, not judged, since a near tie
    may go either way.

    Without anchors there are no scores, and where every forced token is what the logits before it choose, the same
    calculation would give them once more: it is left out, for a large model takes minutes a pass on a CPU.
    """
    expected = reference[f"{side}_tokens"].tolist()
    chosen = forced_logits.argmax(axis=-1).tolist()
    if anchored or bundle.backend.has_greedy_loop or chosen != expected:
        chosen = _free_tokens(bundle, reference, anchored, len(expected)).tolist()
    matching = next((i for i, (a, b) in enumerate(zip(chosen, expected, strict=True)) if a != b), len(expected))
    return Greedy(anchored, tuple(expected), tuple(chosen), matching)


def _check_loop(bundle: Bundle, reference: Mapping[str, Array], anchored: bool, tokens: list[int]) -> Check:
    """The tokens of the backend's own loop against those that the host chose from the same engines' logits."""
    on_host = _free_tokens(bundle, reference, anchored, len(tokens), return_logits=True)
    return compare("greedy_loop", anchored, np.array(tokens), on_host, Tolerance(0.0, 0.0, 0.0))


def _free_tokens(
    bundle: Bundle, reference: Mapping[str, Array], anchored: bool, count: int, *, return_logits: bool = False
) -> Array:
    """What the bundle answers by itself, `count` tokens; with `return_logits` the host chooses them."""
    return bundle.answer(
        prepared_of(reference), count, Anchoring(anchored), ignore_stop=True, return_logits=return_logits
    ).tokens


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: they are null."""
    return value if math.isfinite(value) else None


def parity_document(precision: str, reference: str, runs: Sequence[ParityRun], not_run: Sequence[NotRun]) -> Parity:
    """parity.json: it passed when something was run and every run passed."""
    passed = bool(runs) and all(run.passed for run in runs)
    return Parity(passed, precision, reference, tuple(runs), tuple(not_run))
