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
from scipy.optimize import linear_sum_assignment

from va_export.anchor import subspace_score
from va_export.anchor.sharing import sharing_score
from va_export.proof.documents import Check, Greedy, NotRun, OwnScore, Parity, ParityRun, Tolerance
from va_export.proof.reference import SIDES, prepared_of
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.backends.backend import has_score_graph
from va_export.runtime.bundle import Bundle
from va_export.runtime.scoring import Scored, score_visual_tokens

Array = npt.NDArray[Any]
# Unit roundoff: half the distance from 1 to the next number (IEEE 754; bfloat16 keeps 8 bits).
_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
# Roundings on the way through one transformer layer: two norms, seven matrix products and their sums, rotary,
# softmax, gating, two
# residual sums, each of an input and an output: about 24.
_ROUNDINGS_PER_LAYER = 24
# The largest of 10⁶ Gaussian errors is 5 σ; twice that leaves room for accumulation order and a wider tail.
_SPREAD = 10.0
# cos φ of two vectors whose difference has relative length e is 1 − e²/2. What is asked for is what the product
# promises (0.999 in float16), tighter in float32, and bfloat16's eight times coarser steps.
_COSINE = {"fp32": 1 - 1e-6, "fp16": 0.999, "bf16": 0.99}
# The score is compared on the reference's visual tokens: the host solver's float32 against float64. Its iteration
# stops at a residual of eps = 2e-4, which after summing and min-max scaling is 2e-3 at the most on the official
# implementation's data. A token on the border of two subspaces may fall to either side by rounding, and then carries
# the other one's size: a step that no roundoff bounds. When labels differ the cosine alone decides, and the
# agreement of the labels is reported.
_SCORE_ATOL, _SCORE_COSINE = 2e-3, 0.999
# The score component computes in float32 what the host's solver leaves to float64 (Gram matrices, eigenvectors). What
# it promises is ten times the above; measured are 2e-5 (va_export/ops/subspace_score.py).
_SCORE_GRAPH_ATOL = 2e-2
# Partitions of tokens without structure that end in other local optima cut within 0.1 % of each other; one of wrong
# eigenvectors is off by tens of percent.
_CUT_MARGIN = 0.02


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
    norm = float(np.linalg.norm(finite) * np.linalg.norm(expected64))
    cosine = float((finite * expected64).sum() / norm) if norm > 0 else float(not error.any())
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
        cosine=_finite(min(1.0, cosine)),
        nan=nan,
        inf=inf,
        top1_agreement=agreement,
        tolerance=tolerance,
        tolerance_used=_finite(min(used, 1e30)),
        passed=nan == 0 and inf == 0 and used <= 1.0 and cosine >= tolerance.cosine,
    )


def tolerance_for(precision: str, n_layers: int, expected: Array, atol: float | None, rtol: float | None) -> Tolerance:
    """What rounding explains after `n_layers` layers: independent roundings add as their root, each of relative size
    u, and the largest of many is `_SPREAD` times the usual one.
    """
    relative = _SPREAD * _ROUNDOFF[precision] * math.sqrt(_ROUNDINGS_PER_LAYER * max(1, n_layers))
    scale = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
    return Tolerance(
        atol=relative * scale if atol is None else atol,
        rtol=relative if rtol is None else rtol,
        cosine=_COSINE[precision],
    )


def check_parity(
    bundle: Bundle, reference: Mapping[str, Array], atol: float | None = None, rtol: float | None = None
) -> ParityRun:
    """Run every stage of a bundle on the reference's frames; one entry of `runs` in parity.json.

    Args:
        atol, rtol: replace the tolerances that follow from the precision.
    """
    data, prepared = bundle.manifest.data, prepared_of(reference)
    precision: str = data.precision
    vision_layers = data.model.vision.num_layers
    layers = vision_layers + data.model.text.num_layers
    checks: list[Check] = []

    visual = bundle.backend.run("vision", prepared.vision_inputs)["visual_tokens"]
    expected = reference["visual_tokens"]
    checks.append(
        compare("visual_tokens", None, visual, expected, tolerance_for(precision, vision_layers, expected, atol, rtol))
    )
    if not np.isfinite(visual).all():  # nothing behind it can be run
        return _run_entry(bundle, checks, None, [])
    scored = score_visual_tokens(scored_tokens(reference), bundle.score_settings)
    checks.append(_compare_score("sharing_score", scored, reference, _SCORE_ATOL if atol is None else atol, rtol))
    if has_score_graph(bundle.manifest, bundle.backend.name):
        checks.append(_graph_score(bundle, reference, atol, rtol))
    greedy: list[Greedy] = []
    for anchored, side in SIDES:
        expected = reference[f"{side}_logits"]
        actual = _teacher_forced(bundle, reference, anchored, side)
        tolerance = tolerance_for(precision, layers, expected, atol, rtol)
        checks.append(compare("prefill_logits", anchored, actual[:1], expected[:1], tolerance, top1=True))
        if len(expected) > 1:
            checks.append(compare("decode_logits", anchored, actual[1:], expected[1:], tolerance, top1=True))
        if np.isfinite(actual).all():
            greedy.append(_greedy(bundle, reference, anchored, side, actual))
            if bundle.backend.has_greedy_loop:
                checks.append(_check_loop(bundle, reference, anchored, list(greedy[-1].bundle)))
    return _run_entry(bundle, checks, _own_score(bundle, visual[prepared.scored_rows], reference), greedy)


def scored_tokens(reference: Mapping[str, Array]) -> Array:
    """The visual tokens that are scored."""
    return reference["visual_tokens"][prepared_of(reference).scored_rows]


def _graph_score(bundle: Bundle, reference: Mapping[str, Array], atol: float | None, rtol: float | None) -> Check:
    """The score component, on the reference's visual tokens like the host's solver.

    Tokens without clear subspaces have many partitions that are about as good, and float32 eigenvectors may lead to
    another one. A graph with other labels must give the score of its own, and labels that cut as little.
    """
    tokens = scored_tokens(reference)
    scored = score_visual_tokens(tokens, bundle.score_settings, backend=bundle.backend)
    tolerance = Tolerance(_SCORE_GRAPH_ATOL if atol is None else atol, rtol or 0.0, _SCORE_COSINE)
    if label_agreement(scored.labels, reference["labels"]) == 1.0:
        return compare("score_graph", None, scored.sharing_score, reference["sharing_score"], tolerance)
    details = subspace_score(tokens, **structs.asdict(bundle.score_settings), return_details=True)
    expression = np.asarray(details.self_expression, dtype=np.float64)
    expected = sharing_score(expression.sum(axis=1), scored.labels)
    check = compare("score_graph", None, scored.sharing_score, expected, tolerance)
    bound = (1 + _CUT_MARGIN) * normalized_cut(expression, reference["labels"])
    return structs.replace(check, passed=check.passed and normalized_cut(expression, scored.labels) <= bound)


def normalized_cut(self_expression: Array, labels: Array) -> float:
    """Σ over subspaces of the affinity |C| + |C|ᵀ that leaves it, as a share of all that its tokens have: what spectral
    clustering minimises, in [0, number of subspaces]."""
    affinity = np.abs(self_expression) + np.abs(self_expression).T
    degree = affinity.sum(axis=1)
    member = labels[:, None] == np.unique(labels)
    inside = np.einsum("ik,ij,jk->k", member.astype(np.float64), affinity, member.astype(np.float64), optimize=True)
    return float((1 - inside / (degree @ member)).sum())


def _compare_score(
    stage: str, scored: Scored, reference: Mapping[str, Array], atol: float, rtol: float | None
) -> Check:
    same_labels = label_agreement(scored.labels, reference["labels"]) == 1.0
    tolerance = Tolerance(atol if same_labels else None, rtol or 0.0, _SCORE_COSINE)
    return compare(stage, None, scored.sharing_score, reference["sharing_score"], tolerance)


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
    """How near the score of the bundle's own visual tokens comes: reported, not judged, for the reason at
    `_SCORE_ATOL`."""
    scored = score_visual_tokens(visual, bundle.score_settings)
    cosine = np.dot(scored.sharing_score, reference["sharing_score"]) / (
        np.linalg.norm(scored.sharing_score) * np.linalg.norm(reference["sharing_score"])
    )
    return OwnScore(
        cosine=_finite(float(cosine)),
        max_abs=_finite(float(np.abs(scored.sharing_score - reference["sharing_score"]).max())),
        label_agreement=label_agreement(scored.labels, reference["labels"]),
    )


def label_agreement(actual: Array, expected: Array) -> float:
    """Share of tokens in the same cluster, under the best one-to-one renaming of clusters."""
    size = int(max(actual.max(), expected.max())) + 1
    overlap = np.zeros((size, size), dtype=np.int64)
    np.add.at(overlap, (actual, expected), 1)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[rows, columns].sum() / len(actual))


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
