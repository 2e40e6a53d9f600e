"""The SubspaceScore plugin's own code around its kernels compiled for the CPU, and its binding for PyTorch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from msgspec.structs import asdict
from refusals import refused
from score_case import GuardedBuffer, score_params

from va_export.anchor import subspace_score
from va_export.native.subspace_score_params import SubspaceScoreParams
from va_export.settings import ScoreSettings

torch = pytest.importorskip("torch")

from va_export.anchor import cuda_scoring  # noqa: E402
from va_export.native import subspace_score as binding  # noqa: E402

TOLERANCE = 1e-4  # as in test_subspace_score_kernel.py
SETTINGS = ScoreSettings(n_subspaces=3, max_iter=40)
TOKENS = np.random.default_rng(3).standard_normal((24, 6)).astype(np.float16).astype(np.float32)


def expected(settings: ScoreSettings = SETTINGS) -> Any:
    with pytest.warns(RuntimeWarning, match="stopped after 40"):
        return subspace_score(TOKENS, **asdict(settings), dtype="float64", return_details=True)


@pytest.mark.parametrize("most_tokens", [24, 100])
def test_serialised_and_cloned_plugin_computes_the_op(score_plugin_driver: ctypes.CDLL, most_tokens: int) -> None:
    params = score_params(TOKENS, SETTINGS, "float16")
    given = TOKENS.astype(np.float16).tobytes()
    tokens, score, labels = GuardedBuffer(len(given), given), GuardedBuffer(4 * 24), GuardedBuffer(8 * 24)
    params.tokens, params.sharing_score, params.labels = tokens.address, score.address, labels.address
    status = score_plugin_driver.run_score_plugin(ctypes.byref(params), ctypes.c_int64(most_tokens))
    assert (status, score_plugin_driver.score_plugin_log()) == (0, b"")
    reference = expected()
    np.testing.assert_allclose(score.read(np.float32), reference.sharing_score, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(labels.read(np.int64), reference.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0.0}, "field 'rho' is 0, supported are 9.999e-21 to 1.0001e+20"),
        ({"rho": float("nan")}, "field 'rho' is nan, supported are 9.999e-21 to 1.0001e+20"),
        ({"eps": -1.0}, "field 'eps' is -1, supported are 1e-45 to 3.4e+38"),
        ({"max_iter": 0}, "field 'max_iter' is 0, supported are 1 to 2.14748e+09"),
        ({"n_subspaces": 129}, "field 'n_subspaces' is 129, supported are 1 to 128"),
        ({"pca_rank": 257}, "field 'pca_rank' is 257, supported are 0 to 256"),
        ({"token_count": 2}, "tokens has N = 2, supported are 3 to 65536 with n_subspaces = 3"),
        ({"dim": 32769}, "tokens has D = 32769, supported are 1 to 32768"),
        ({"pca_rank": 7}, "pca_rank = 7 is more than tokens of sizes (24, 6) have"),
    ],
    ids=str,
)
def test_what_the_plugin_refuses_it_explains(
    score_plugin_driver: ctypes.CDLL, change: dict[str, object], message: str
) -> None:
    params = score_params(TOKENS, SETTINGS)
    for name, value in change.items():
        setattr(params, name, value)
    assert score_plugin_driver.run_score_plugin(ctypes.byref(params), params.token_count) != 0
    assert score_plugin_driver.score_plugin_log().decode() == f"SubspaceScore (node 'node'): {message}\n"


@pytest.fixture
def on_host(score_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes CPU tensors and launches on the CPU; everything between stays as it is."""

    def launch(params: SubspaceScoreParams, device: object) -> None:
        size = score_library.va_subspace_score_workspace_bytes(ctypes.byref(params))
        workspace = GuardedBuffer(size)
        params.workspace, params.workspace_bytes = workspace.address, size
        assert score_library.va_subspace_score_launch(ctypes.byref(params), None) == 0

    monkeypatch.setattr(binding, "_check_device", lambda tokens: None)
    monkeypatch.setattr(binding, "_launch", launch)
    monkeypatch.setattr(binding, "cuda_kernel_serves", lambda *given: True)
    score_library.simt_set_grid(2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_torch_binding_gives_the_references_details(on_host: None, dtype: Any) -> None:
    strided = torch.tensor(np.repeat(TOKENS, 2, axis=1)).to(dtype)[:, ::2]
    ours, reference = cuda_scoring.score_on_cuda(strided, SETTINGS, "float32"), expected()
    assert ours is not None
    np.testing.assert_allclose(ours.sharing_score, reference.sharing_score, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.self_expression, reference.self_expression, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(ours.labels, reference.labels)
    assert (ours.iterations, ours.converged) == (40, False)
    assert ours.residual == pytest.approx(reference.residual, rel=1e-3)
    assert ours.lambda_z == pytest.approx(reference.lambda_z, rel=1e-6)


def test_torch_binding_refuses_what_the_reference_refuses(on_host: None) -> None:
    tokens = torch.tensor(TOKENS)
    for fill, named in ((float("nan"), "NaN"), (0.0, "token")):
        bad = tokens.clone()
        bad[4] = fill
        with refused("subspace_score", named):
            cuda_scoring.score_on_cuda(bad, SETTINGS, "float32")
    equal = cuda_scoring.score_on_cuda(torch.ones(12, 4), SETTINGS, "float32")
    assert equal is not None
    assert (equal.converged, equal.iterations, float(equal.sharing_score.max())) == (True, 0, 0.0)
    assert np.isnan(equal.lambda_e)


@pytest.mark.parametrize(
    ("tokens", "settings", "named"),
    [
        (torch.ones(4), SETTINGS, [(4,)]),
        (torch.ones(4, 4, dtype=torch.float64), SETTINGS, ["float64"]),
        (torch.ones(2, 4), SETTINGS, [2, 3]),
        (torch.ones(200, 4), ScoreSettings(n_subspaces=129), ["n_subspaces", 129]),
        (torch.ones(20, 4), ScoreSettings(n_subspaces=3, pca_rank=5), ["pca_rank", 5]),
        (torch.ones(20, 4), SETTINGS, ["cpu"]),
    ],
)
def test_torch_binding_names_its_limits(tokens: Any, settings: ScoreSettings, named: list[object]) -> None:
    with refused("subspace_score_cuda", *named):
        binding.subspace_score_cuda(tokens, settings)


def test_kernels_are_taken_by_name_and_within_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        ndim, shape, dtype = 2, (30, 4), torch.float16
        device = torch.device("cuda", 0)

    tokens: Any = OnGpu()
    monkeypatch.delenv(binding.KERNEL_VARIABLE, raising=False)
    assert not binding.cuda_kernel_serves(tokens, SETTINGS, "float32")
    monkeypatch.setenv(binding.KERNEL_VARIABLE, "cuda")
    assert binding.cuda_kernel_serves(tokens, SETTINGS, "float32")
    assert not binding.cuda_kernel_serves(tokens, SETTINGS, "float64")
    assert not binding.cuda_kernel_serves(tokens, ScoreSettings(31), "float32")
    assert not binding.cuda_kernel_serves(torch.ones(30, 4), SETTINGS, "float32")
