"""The SubspaceScore kernels on a GPU, against the paper's own numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from va_export.anchor.cuda_scoring import details_by_kernels  # noqa: E402
from va_export.evidence.score_rows import SCORE_TOLERANCE, same_partition  # noqa: E402
from va_export.native.subspace_score import PRODUCTS, PRODUCTS_VARIABLE, subspace_score_cuda  # noqa: E402
from va_export.settings import ScoreSettings  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "anchor"))
from golden_scores import SSC_CASES, load_golden_score  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("name", SSC_CASES)
def test_golden_tokens(monkeypatch: pytest.MonkeyPatch, name: str, products: str) -> None:
    monkeypatch.setenv(PRODUCTS_VARIABLE, products)
    golden = load_golden_score(name)
    settings = ScoreSettings(n_subspaces=golden.n_subspaces, pca_rank=golden.pca_rank)
    ours = details_by_kernels(torch.tensor(golden.tokens, device="cuda"), settings)
    np.testing.assert_allclose(ours.sharing_score.cpu(), golden.sharing_score, rtol=0, atol=SCORE_TOLERANCE)
    assert abs(ours.iterations - golden.iterations) <= 1
    assert same_partition(ours.labels, torch.tensor(golden.labels))


def test_a_captured_graph_gives_the_same_bits() -> None:
    golden = load_golden_score(SSC_CASES[0])
    tokens, settings = torch.tensor(golden.tokens, device="cuda"), ScoreSettings(golden.n_subspaces, max_iter=20)
    expected = subspace_score_cuda(tokens, settings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = subspace_score_cuda(tokens, settings)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.sharing_score, expected.sharing_score)
    assert torch.equal(captured.labels, expected.labels)
