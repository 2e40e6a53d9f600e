"""Parity: the comparison itself against hand-made errors, and a real bundle against its reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_scores import planted_tokens
from msgspec.structs import asdict

from va_export.anchor import subspace_score
from va_export.anchor.sharing import sharing_score
from va_export.documents import decode, encode, read
from va_export.errors import VaExportError
from va_export.proof.compare import check_parity, compare, parity_document
from va_export.proof.documents import OwnScore, Parity, ParityRun, Tolerance
from va_export.proof.partition import (
    AS_GOOD,
    SAME,
    UNDETERMINED,
    WORSE,
    ReferencePartition,
    eigengap,
    label_agreement,
    normalized_cut,
)
from va_export.proof.reference import read_reference
from va_export.proof.tolerances import count_roundings, most_copies, tolerance_for
from va_export.runtime.bundle import Bundle
from va_export.runtime.processing import Prepared
from va_export.settings import ScoreSettings

LOOSE = Tolerance(atol=1e9, rtol=0.0, cosine=-1.0)


def test_measures_of_a_known_error() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0]])
    actual = np.array([[3.0, 5.0], [-1.0, 0.0]])
    check = compare("s", None, actual, expected, Tolerance(0.5, 0.25, 0.9), top1=True)
    assert (check.max_abs, check.mean_abs) == (1.0, 0.5)
    assert check.max_rel == pytest.approx(1 / 2.5) and check.mean_rel == pytest.approx(0.5 / 2.5)  # root mean square
    assert check.cosine == pytest.approx(29 / (5 * math.sqrt(35)))
    assert check.top1_agreement == 0.5
    assert check.tolerance_used == pytest.approx(1 / 0.5)  # at the zero, where only atol counts
    assert not check.passed


@pytest.mark.parametrize(("error", "passed"), [(0.99, True), (1.01, False)])
def test_the_bound_decides(error: float, passed: bool) -> None:
    expected = np.full(100, 10.0)
    actual = expected.copy()
    actual[7] += error
    check = compare("s", None, actual, expected, Tolerance(atol=0.5, rtol=0.05, cosine=0.0))
    assert check.passed is passed and check.tolerance_used == pytest.approx(error)


def test_the_cosine_decides_too() -> None:
    expected = np.array([1.0, 0.0])
    assert not compare("s", None, np.array([1.0, 0.1]), expected, Tolerance(1.0, 0.0, 0.999)).passed
    assert compare("s", None, np.array([1.0, 0.01]), expected, Tolerance(1.0, 0.0, 0.999)).passed


@pytest.mark.parametrize(("value", "nan", "inf"), [(np.nan, 1, 0), (np.inf, 0, 1), (-np.inf, 0, 1)])
def test_one_value_that_is_not_finite_fails_whatever_the_tolerance(value: float, nan: int, inf: int) -> None:
    actual = np.zeros(10)
    actual[3] = value
    check = compare("s", None, actual, np.zeros(10), LOOSE)
    assert not check.passed and (check.nan, check.inf) == (nan, inf)
    assert math.isfinite(check.max_abs) and math.isfinite(check.cosine)


def test_equal_arrays_pass_at_no_tolerance_and_others_do_not() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    exact = Tolerance(0.0, 0.0, 1.0 - 1e-12)
    assert compare("s", None, values, values.astype(np.float32), exact).passed
    other = values.copy()
    other[1, 1] = np.nextafter(other[1, 1], np.float16(9))
    assert not compare("s", None, other, values, exact).passed


def test_all_zeros() -> None:
    assert compare("s", None, np.zeros(4), np.zeros(4), Tolerance(0.0, 0.0, 0.999)).passed
    assert not compare("s", None, np.ones(4), np.zeros(4), Tolerance(2.0, 0.0, 0.999)).passed


def test_other_shapes_are_a_bug() -> None:
    with pytest.raises(ValueError, match="shapes"):
        compare("s", None, np.zeros(3), np.zeros((3, 1)), LOOSE)


def test_sums_of_products_round_in_float32_alone() -> None:
    assert count_roundings("fp16", 3, 64, 96) == count_roundings("bf16", 3, 64, 96) == 72
    assert count_roundings("fp32", 3, 64, 96) == pytest.approx(3 * (24 + 0.09 * (6 * 64 + 96)))
    panels = 0.09 * (6 * (384 + 10) + 384 + 2)  # of 384 terms, then their sums
    assert count_roundings("fp32", 1, 4096, 1024) == pytest.approx(24 + panels)


@pytest.mark.parametrize("terms", [64, 256, 1176, 4096])
def test_a_float32_product_rounds_no_more_than_counted(terms: int) -> None:
    """NumPy's product against float64, in units of the roundoff: at most a quarter above (another library's panels)."""
    random = np.random.default_rng(terms)
    left, right = random.standard_normal((128, terms)), random.standard_normal((terms, 128))
    single = [part.astype(np.float32) for part in (left, right)]
    exact = single[0].astype(np.float64) @ single[1].astype(np.float64)
    variance = float(np.var(single[0] @ single[1] - exact) / np.var(exact)) / 2.0**-48
    counted = (count_roundings("fp32", 1, terms, terms) - 24) / 7
    assert 0.1 * counted < variance < 1.25 * counted


def test_tolerances_grow_with_roundoff_and_the_root_of_the_depth() -> None:
    expected = np.array([3.0, -4.0])  # root mean square sqrt(12.5)
    half, single = (tolerance_for(precision, 4, expected, None, None) for precision in ("fp16", "fp32"))
    assert half.rtol / single.rtol == pytest.approx(2**13)
    assert half.atol == pytest.approx(half.rtol * math.sqrt(12.5))
    assert tolerance_for("fp16", 16, expected, None, None).rtol == pytest.approx(2 * half.rtol)
    assert tolerance_for("bf16", 4, expected, None, None).rtol == pytest.approx(8 * half.rtol)
    assert tolerance_for("fp16", 4, expected, None, None, copies=4).rtol == pytest.approx(2 * half.rtol)
    given = tolerance_for("fp16", 4, expected, 0.0, 0.5)
    assert (given.atol, given.rtol, given.cosine) == (0.0, 0.5, half.cosine)


def test_labels_agree_up_to_their_names() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert label_agreement(labels, labels) == 1.0
    assert label_agreement(np.array([2, 2, 0, 0, 1, 1]), labels) == 1.0
    assert label_agreement(np.array([2, 2, 0, 1, 1, 1]), labels) == pytest.approx(5 / 6)
    assert label_agreement(np.zeros(6, int), labels) == pytest.approx(2 / 6)


def test_a_document_passes_when_something_ran_and_everything_passed() -> None:
    def passed(*runs: bool) -> bool:
        found = [ParityRun("torch", "cpu", "plugin", run, ()) for run in runs]
        return parity_document("fp16", "reference", found, []).passed

    assert passed(True) and passed(True, True)
    assert not passed(True, False) and not passed()


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path) -> dict[str, np.ndarray[Any, Any]]:
    return read_reference(tiny_bundle)


def test_a_good_bundle_passes(tiny_bundle: Path, reference: dict[str, np.ndarray[Any, Any]]) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        result = check_parity(bundle, reference)
    assert decode(encode(result), ParityRun, what="", where="", fix="") == result
    assert result.passed and (result.backend, result.attention) == ("onnxruntime", "plugin")
    stages = [(check.stage, check.anchors) for check in result.checks]
    assert stages == [
        ("visual_tokens", None), ("sharing_score", None), ("score_graph", None), ("prefill_logits", True),
        ("decode_logits", True), ("prefill_logits", False), ("decode_logits", False),
    ]  # fmt: skip
    assert {run.anchors for run in result.greedy} == {True, False}
    for check in result.checks:
        assert 0 < (check.tolerance_used or 0) <= 1 and (check.cosine or 0) >= 0.999 and check.nan == check.inf == 0


def test_plain_tokens_are_not_computed_twice(
    tiny_bundle: Path, reference: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the forced tokens are what the logits choose; a single other one makes the bundle answer by itself."""
    with Bundle.open(tiny_bundle) as bundle:
        answer, passes = bundle.answer, []

        def counted(prepared: Prepared, *given: Any, **options: Any) -> Any:
            anchoring = options.get("anchoring") or given[1]
            passes.append((anchoring.enabled, options.get("forced_tokens") is not None))
            return answer(prepared, *given, **options)

        monkeypatch.setattr(bundle, "answer", counted)
        agreed = check_parity(bundle, reference)
        assert passes == [(True, True), (True, False), (False, True)]
        tokens = reference["plain_tokens"].copy()
        tokens[-1] = (tokens[-1] + 1) % reference["plain_logits"].shape[1]
        passes.clear()
        differing = check_parity(bundle, {**reference, "plain_tokens": tokens})
        assert passes == [(True, True), (True, False), (False, True), (False, False)]
    first, second = ({run.anchors: run for run in result.greedy}[False] for result in (agreed, differing))
    assert list(first.bundle) == list(second.bundle) == reference["plain_tokens"].tolist()
    assert (first.matching_prefix, second.matching_prefix) == (len(tokens), len(tokens) - 1)


@pytest.mark.parametrize(("array", "stages"), [
    ("visual_tokens", {"visual_tokens"}),
    ("sharing_score", {"sharing_score", "score_graph"}),
    ("anchored_logits", {"prefill_logits", "decode_logits"}),
    ("plain_logits", {"prefill_logits", "decode_logits"}),
    ("key_log_gain", {"prefill_logits", "decode_logits"}),
    ("value_gain", {"prefill_logits", "decode_logits"}),
])  # fmt: skip
def test_a_bundle_that_computes_something_else_fails_there(
    tiny_bundle: Path, reference: dict[str, np.ndarray[Any, Any]], array: str, stages: set[str]
) -> None:
    """The reference is moved instead of the bundle: to the comparison it is the same."""
    random = np.random.default_rng(0)
    moved = reference[array] * (1 + 0.2 * random.normal(size=reference[array].shape))
    with Bundle.open(tiny_bundle) as bundle:
        result = check_parity(bundle, {**reference, array: moved.astype(np.float32)})
    failed = {check.stage for check in result.checks if not check.passed}
    assert (
        not result.passed
        and failed
        and failed <= stages | ({"sharing_score", "score_graph"} if array == "visual_tokens" else set())
    )


def test_the_two_forms_of_the_decoder_were_compared_at_export(tiny_bundle: Path) -> None:
    parity = read(tiny_bundle / "parity.json", Parity, what="parity", fix="")
    assert [(run.backend, run.attention) for run in parity.runs] == [
        ("onnxruntime", "plugin"),
        ("onnxruntime", "native"),
    ]
    assert parity.passed and parity.precision == "fp16"
    assert all(row.reason and row.command for row in parity.not_run) and parity.not_run


@pytest.mark.parametrize("labels", ["worse", "renamed"])
def test_a_graph_with_other_labels_is_judged_by_what_they_cut(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    """Labels of other tokens cut much more, though the score is right for them; other names cut the same."""
    reference = read_reference(tiny_bundle)
    with Bundle.open(tiny_bundle) as bundle:
        tokens = reference["visual_tokens"]
        details = subspace_score(tokens, **asdict(bundle.score_settings), return_details=True)
        row_sum = np.asarray(details.self_expression, np.float64).sum(1)
        given = np.roll(reference["labels"], 5) if labels == "worse" else 3 - reference["labels"]
        score = sharing_score(row_sum, given).astype(np.float32)
        results = {"sharing_score": score, "labels": given}
        run = bundle.backend.run
        monkeypatch.setattr(bundle.backend, "run", lambda name, of: results if name == "score" else run(name, of))
        rows = [check for check in check_parity(bundle, reference).checks if check.stage == "score_graph"]
    assert [check.passed for check in rows] == [labels == "renamed"]


def frames_of(tokens: np.ndarray[Any, Any], copies: int) -> np.ndarray[Any, Any]:
    return np.tile(tokens, (copies, 1)).astype(np.float32)


def test_the_subspaces_of_a_still_clip_are_not_judged_and_its_scores_are() -> None:
    """Every token is expressed by its copies, so that the affinity falls apart into 16 groups for 4 subspaces: any
    union of groups cuts nothing."""
    tokens = frames_of(np.random.default_rng(0).standard_normal((16, 24)), 8)
    labels = np.tile(np.arange(16) % 4, 8)
    partition = ReferencePartition(tokens, labels, ScoreSettings(4))
    others = np.tile(np.arange(16) // 4, 8)
    assert partition.judge((labels + 1) % 4) == SAME
    assert partition.judge(others) == UNDETERMINED
    c = subspace_score(tokens, 4, dtype="float64", return_details=True).self_expression
    assert eigengap(c, 4) < 1e-9 and not c.reshape(8, 16, 8, 16)[:, 0, :, 1:].any()
    np.testing.assert_array_equal(partition.score_of(others), sharing_score(c.sum(1), others))


def test_the_subspaces_of_tokens_that_have_them_are_judged() -> None:
    tokens, labels = planted_tokens(12, 3, 20, noise=0.05)
    partition = ReferencePartition(tokens, labels, ScoreSettings(3))
    border = labels.copy()
    border[0] = (border[0] + 1) % 3
    assert partition.judge(2 - labels) == SAME
    assert partition.judge(np.zeros_like(labels)) == WORSE  # and cuts nothing
    assert partition.judge(np.arange(len(labels)) % 3) == WORSE
    assert partition.judge(border) in (WORSE, AS_GOOD)


def test_the_gap_of_two_cliques_that_touch() -> None:
    """Two pairs, linked by b between two of their tokens: the normalised affinity written out by hand."""
    c = np.zeros((4, 4))
    c[0, 1] = c[2, 3] = 1.0
    c[1, 2] = 0.25
    root = np.sqrt([1.0, 1.25, 1.25, 1.0])
    spectrum = np.linalg.eigvalsh((c + c.T) / np.outer(root, root))[::-1]
    assert eigengap(c, 2) == pytest.approx(spectrum[1] - spectrum[2])
    assert eigengap(c, 4) == eigengap(np.zeros((4, 4)), 2) == math.inf


def test_a_score_of_zeros_is_compared_to_its_end(
    tiny_bundle: Path, reference: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal tokens, of which no one recurs more than another: the report's cosine was 0/0, which JSON does not have."""
    tokens = np.tile(reference["visual_tokens"][:1], (len(reference["visual_tokens"]), 1))
    given = {**reference, "visual_tokens": tokens, "labels": np.zeros(len(tokens), np.int64)}
    given["sharing_score"] = np.zeros(len(tokens), np.float32)
    with Bundle.open(tiny_bundle) as bundle:
        run = bundle.backend.run

        def of_equal_tokens(name: str, inputs: Any) -> Any:
            return {"visual_tokens": tokens} if name == "vision" else run(name, inputs)

        monkeypatch.setattr(bundle.backend, "run", of_equal_tokens)
        result = check_parity(bundle, given)
    rows = {check.stage: check for check in result.checks}
    for stage in ("sharing_score", "score_graph"):
        assert rows[stage].passed and rows[stage].partition == SAME and rows[stage].cosine == 1.0
    assert result.score_end_to_end == OwnScore(1.0, 0.0, 1.0)


def test_the_cut_of_two_halves_counts_what_crosses() -> None:
    expression = np.zeros((4, 4))
    expression[0, 1] = expression[2, 3] = 3.0
    expression[1, 2] = 1.0
    # each half: inside 2 · 3, degree 2 · 3 + 1
    assert normalized_cut(expression, np.array([0, 0, 1, 1])) == pytest.approx(2 * (1 - 6 / 7))
    assert normalized_cut(expression, np.array([0, 1, 0, 1])) == pytest.approx(2.0)
    assert normalized_cut(expression, np.array([5, 5, 5, 5])) == pytest.approx(0.0)


def test_a_reference_whose_frames_are_not_its_own(
    tiny_bundle: Path, reference: dict[str, np.ndarray[Any, Any]]
) -> None:
    pixels = reference["vision.pixel_values"]
    other = {**reference, "vision.pixel_values": np.concatenate([pixels, pixels])}
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(VaExportError):
        check_parity(bundle, other)


def test_copies_of_a_frame_are_counted() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    assert most_copies(frames) == 1
    frames[[1, 4]] = frames[0]
    assert most_copies(frames) == 3
    assert most_copies(frames[:1]) == 1
