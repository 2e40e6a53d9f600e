"""SubspaceScore's function body, in ONNX Runtime, against the original's numbers and the reference in float64; its
schema, its PyTorch form and its translation."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import scorable_tokens
import torch
from golden_scores import SSC_CASES, TINY, load_golden_score, planted_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, fields
from onnx import TensorProto, helper
from sklearn.metrics import adjusted_rand_score

from va_export.anchor import subspace_score
from va_export.anchor.scorable import NO_SCORE
from va_export.ops import subspace_score as op
from va_export.ops.declaration import DOMAIN, VERSION
from va_export.ops.subspace.spectral import first_rows
from va_export.settings import ScoreSettings

Array = np.ndarray[Any, Any]
# What the op promises. Where labels agree, float32 leaves less than 1e-4 of it.
MAX_ERROR, CORRELATION = 2e-2, 0.999


@cache
def session(score: ScoreSettings, elem_type: int, is_wide: bool) -> onnxruntime.InferenceSession:
    node = helper.make_node(op.OP_TYPE, list(op.INPUTS), list(op.OUTPUTS), domain=DOMAIN, **asdict(score))
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("tokens", elem_type, ["N", "D"])],
        [
            helper.make_tensor_value_info("sharing_score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    body = op.function_body(with_pca=score.pca_rank > 0, is_wide=is_wide)
    made = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=11)
    op.schema()
    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its threads would wait for each other, on a busy machine for long
    return onnxruntime.InferenceSession(made.SerializeToString(), options)


def run(tokens: Array, score: ScoreSettings, is_wide: bool = False) -> tuple[Array, Array]:
    elem_type = TensorProto.FLOAT16 if tokens.dtype == np.float16 else TensorProto.FLOAT
    outputs = session(score, elem_type, is_wide).run(None, {"tokens": tokens})
    assert outputs[0].dtype == np.float32 and outputs[1].dtype == np.int64
    assert outputs[0].shape == outputs[1].shape == (len(tokens),)
    return outputs[0], outputs[1]


def check(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=MAX_ERROR)
    assert np.corrcoef(actual, expected)[0, 1] >= CORRELATION


@pytest.mark.parametrize("name", [*SSC_CASES, TINY])
def test_the_body_scores_as_the_original(name: str) -> None:
    golden = load_golden_score(name)
    is_wide = op.is_wide_for(*golden.projected.shape)
    score, labels = run(golden.tokens, ScoreSettings(golden.n_subspaces, golden.pca_rank), is_wide)
    check(score, golden.sharing_score)
    assert adjusted_rand_score(labels, golden.labels) == 1.0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    per_subspace=st.integers(8, 16),
    n_subspaces=st.integers(2, 6),
    dim=st.integers(16, 60),
    noise=st.sampled_from([0.0, 0.01, 0.05]),
    rank=st.sampled_from([0, 0, 12]),
    is_wide=st.booleans(),
)
def test_the_body_scores_planted_subspaces_as_the_reference(
    seed: int, per_subspace: int, n_subspaces: int, dim: int, noise: float, rank: int, is_wide: bool
) -> None:
    tokens = planted_tokens(per_subspace, n_subspaces, dim, noise=noise, seed=seed)[0].astype(np.float32)
    score = ScoreSettings(n_subspaces, rank)
    expected = subspace_score(tokens, **asdict(score), dtype="float64")
    check(run(tokens, score, is_wide)[0], expected)


def test_principal_components_of_small_variance_are_found() -> None:
    """Down to 3e-4 of the first's, as a spectrum of real tokens falls: a stopping rule on the first's scale alone would
    leave the last components to chance."""
    tokens = planted_tokens(24, 5, 40, noise=0.02, seed=3)[0]
    turned = tokens @ np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    falling = (turned * np.logspace(0, -2.5, 40)).astype(np.float32)
    variance = np.linalg.svd(falling - falling.mean(0), compute_uv=False) ** 2
    assert variance[15] < 3e-4 * variance[0]
    score = ScoreSettings(5, 16)
    check(run(falling, score)[0], subspace_score(falling, **asdict(score), dtype="float64"))


def test_the_two_forms_of_the_solver_agree() -> None:
    """On either side of as many features as tokens: Woodbury's identity holds everywhere."""
    for dim in (8, 31, 32, 70):
        tokens = planted_tokens(8, 4, dim, noise=0.05, seed=dim)[0].astype(np.float32)
        (narrow, _), (wide, _) = (run(tokens, ScoreSettings(4), is_wide) for is_wide in (False, True))
        np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-3)  # float32 at a condition of about 1e3


def test_float16_tokens_are_scored_in_float32() -> None:
    tokens = planted_tokens(12, 3, 20, noise=0.05)[0].astype(np.float16)
    np.testing.assert_array_equal(run(tokens, ScoreSettings(3))[0], run(tokens.astype(np.float32), ScoreSettings(3))[0])


def test_every_attribute_is_read() -> None:
    """Each changes the score as it changes the reference's."""
    tokens = planted_tokens(10, 4, 20, noise=0.2, seed=4)[0].astype(np.float32)
    base = ScoreSettings(4)
    plain = run(tokens, base)[0]
    changed = {
        "n_subspaces": 2,
        "pca_rank": 6,
        "rho": 30.0,
        "alpha_e": 20.0,
        "alpha_z": 50.0,
        "eps": 0.5,
        "max_iter": 7,
    }
    assert set(changed) == {field.name for field in fields(ScoreSettings)}
    for name, value in changed.items():
        score = ScoreSettings(**{**asdict(base), name: value})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # of having stopped early
            expected = subspace_score(tokens, **asdict(score), dtype="float64")
        actual = run(tokens, score)[0]
        check(actual, expected)
        assert np.abs(actual - plain).max() > 1e-3, name


def zeros_but(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


NOISE = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
UNSCORABLE = {
    "all equal": (np.full((9, 4), 3.5, np.float32), 3),
    "all zero": (np.zeros((9, 4), np.float32), 3),
    "one zero token": (np.concatenate([NOISE, np.zeros((1, 4), np.float32)]), 3),
    "orthogonal": (np.eye(6, dtype=np.float32), 2),
    "NaN": (np.where(np.arange(36).reshape(9, 4) == 13, np.float32(np.nan), NOISE), 3),
    "infinite": (np.where(np.arange(36).reshape(9, 4) == 13, np.float32(-np.inf), NOISE), 3),
    "fewer tokens than subspaces": (NOISE[:3], 5),
    "one token": (NOISE[:1], 1),
}


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("case", UNSCORABLE)
def test_what_cannot_be_scored_leaves_attention_plain(case: str, rank: int, is_wide: bool) -> None:
    tokens, k = UNSCORABLE[case]
    score, labels = run(tokens, ScoreSettings(k, rank), is_wide)
    if rank and case in ("one zero token", "orthogonal"):  # centring takes the zero, or the angle, away
        assert np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1
        return
    assert not score.any()
    assert set(labels.tolist()) == {0 if case.startswith("all") else NO_SCORE}


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("name", scorable_tokens.TOKENS)
def test_the_body_scores_and_refuses_as_the_reference(name: str, is_wide: bool) -> None:
    tokens, verdict = scorable_tokens.TOKENS[name]
    score, labels = run(tokens, ScoreSettings(3), is_wide)
    if verdict == scorable_tokens.SCORED:
        assert labels.min() >= 0 and score.max() > 0.99
        return
    assert not score.any()
    assert set(labels.tolist()) == {0 if verdict == scorable_tokens.EQUAL else NO_SCORE}


def test_a_solver_without_a_result_is_marked() -> None:
    """C is 0 at so small a penalty, and the residual 2.37."""
    tokens = scorable_tokens.TOKENS["plain"][0]
    score, labels = run(tokens, ScoreSettings(3, rho=1e-2, max_iter=300))
    assert not score.any() and set(labels.tolist()) == {NO_SCORE}
    assert run(tokens, ScoreSettings(3, rho=1e-2, max_iter=300, eps=3.0))[1].min() >= 0  # asked for


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 2), (3, 2), (5, 5), (6, 1)])
def test_the_smallest_videos(n: int, k: int) -> None:
    tokens = np.random.default_rng(6).standard_normal((n, 7)).astype(np.float32)
    expected = subspace_score(tokens, k, dtype="float64")
    np.testing.assert_allclose(run(tokens, ScoreSettings(k), True)[0], expected, atol=MAX_ERROR)


def test_a_frozen_video_has_a_score() -> None:
    """Every token repeats: the affinity falls apart into more groups than subspaces, so that labels are arbitrary."""
    frame = np.random.default_rng(2).standard_normal((8, 24)).astype(np.float32)
    score, labels = run(np.tile(frame, (4, 1)), ScoreSettings(5))
    assert np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1
    assert set(labels.tolist()) <= set(range(5))


def test_a_solver_that_stops_early_has_a_score() -> None:
    tokens = planted_tokens(8, 3, 12, noise=0.05)[0].astype(np.float32)
    with pytest.warns(RuntimeWarning, match="stopped after 3"):
        expected = subspace_score(tokens, 3, max_iter=3, dtype="float64")
    check(run(tokens, ScoreSettings(3, max_iter=3))[0], expected)


def test_the_discretisation_starts_from_scikit_learns_row() -> None:
    rows = first_rows()
    for n in (*range(1, 70), 127, 128, 129, 1000, 2048, 4095, 4096, 16383, 16384):
        random = np.random.RandomState(0)
        random.uniform(-1.0, 1.0, n)
        assert rows[n] == random.randint(n), n


def test_the_faster_form() -> None:
    assert op.is_wide_for(2048, 4096) and not op.is_wide_for(2048, 64)
    assert op.is_wide_for(5792, 4096) and not op.is_wide_for(5796, 4096)  # √2 · 4097 = 5794.03


@pytest.mark.parametrize("with_pca", [False, True])
def test_function_body_declares_what_the_schema_declares(with_pca: bool) -> None:
    schema, body = op.schema(), op.function_body(with_pca=with_pca)
    assert [parameter.name for parameter in schema.inputs] == list(op.INPUTS) == list(body.input)
    assert sorted(schema.attributes) == sorted(op.ATTRIBUTES) == sorted(body.attribute)
    assert [parameter.name for parameter in schema.outputs] == list(op.OUTPUTS) == list(body.output)
    assert (body.domain, body.name, schema.since_version) == (DOMAIN, op.OP_TYPE, VERSION)
    nodes = list(body.node)
    for node in nodes:  # loops within loops
        nodes += [inner for attribute in node.attribute for inner in attribute.g.node]
    assert {node.domain for node in nodes} == {""}, "the body must run in any runtime"
    assert not {node.op_type for node in nodes} & {"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}


def test_the_torch_form_is_the_reference() -> None:
    tokens = torch.from_numpy(planted_tokens(8, 3, 12, noise=0.05)[0].astype(np.float32))
    score, labels = op.torch_op()(tokens, *asdict(ScoreSettings(3)).values())  # type: ignore[misc]
    details = subspace_score(tokens, 3, return_details=True)
    torch.testing.assert_close(score, details.sharing_score, rtol=0, atol=0)
    torch.testing.assert_close(labels, details.labels, rtol=0, atol=0)
    torch.library.opcheck(op.torch_op(), (tokens, *asdict(ScoreSettings(3)).values()), test_utils="test_faketensor")


def test_the_torch_form_is_exported_as_the_op() -> None:
    class Scored(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            score, labels = op.torch_op()(2 * tokens, *asdict(ScoreSettings(3)).values())  # type: ignore[misc]
            return score, labels

    table = op.onnx_translation()
    exported = torch.export.export(Scored(), (torch.zeros(24, 12),))
    program = torch.onnx.export(exported, opset_version=24, optimize=False, custom_translation_table=table)  # type: ignore[arg-type]
    assert program is not None
    (node,) = [node for node in program.model.graph if node.domain == DOMAIN]
    assert node.op_type == op.OP_TYPE
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == pytest.approx(asdict(ScoreSettings(3)))
