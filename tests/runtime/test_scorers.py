"""Who computes the score when a bundle runs: the host's solver, or the bundle's own graph."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from refusals import refused
from scorable_tokens import EQUAL, SCORED, TOKENS
from synthetic_manifest import engine_entry

from va_export.bundle.manifest import read_manifest
from va_export.errors import VaExportError
from va_export.proof.compare import check_parity
from va_export.proof.partition import label_agreement
from va_export.proof.reference import prepared_of, read_reference
from va_export.runtime.backends.backend import has_score_graph
from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from va_export.runtime.bundle import Bundle
from va_export.runtime.encoding import choose_scorer
from va_export.runtime.processing import Prepared
from va_export.runtime.scoring import score_visual_tokens


@pytest.mark.parametrize("name", [name for name, (_, verdict) in TOKENS.items() if verdict != SCORED])
def test_what_has_no_score_is_refused_from_a_graph_as_from_the_host(tiny_bundle: Path, name: str) -> None:
    tokens, verdict = TOKENS[name]
    given = np.zeros((24, 128), np.float32)  # the tiny model's hidden size; features that are 0 change nothing
    given[:, : tokens.shape[1]] = tokens
    with Bundle.open(tiny_bundle) as bundle:
        for backend in (None, bundle.backend):
            if verdict == EQUAL:
                assert not score_visual_tokens(given, bundle.score_settings, backend=backend).sharing_score.any()
                continue
            with pytest.raises(VaExportError) as refusal:
                score_visual_tokens(given, bundle.score_settings, backend=backend)
            assert refusal.value.where in ("score", "subspace_score")


@pytest.fixture(scope="module")
def question(tiny_bundle: Path) -> Prepared:
    return prepared_of(read_reference(tiny_bundle))


def test_the_bundles_graph_scores_as_the_host(tiny_bundle: Path, question: Prepared, tmp_path: Path) -> None:
    results = {}
    for scorer in ("host", "graph"):
        with Bundle.open(tiny_bundle, score=scorer, score_cache=tmp_path) as bundle:
            assert bundle.scorer == scorer
            results[scorer] = bundle.answer(question, 2, ignore_stop=True)
    host, graph = results["host"], results["graph"]
    assert host.sharing_score is not None and graph.sharing_score is not None
    assert host.labels is not None and graph.labels is not None
    assert label_agreement(graph.labels, host.labels) == 1.0
    np.testing.assert_allclose(graph.sharing_score, host.sharing_score, rtol=0, atol=2e-2)  # as the op promises
    assert graph.sharing_score.dtype == np.float32 and graph.labels.dtype == np.int64
    # Two entries: a cached score is found only by who would compute it.
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert (graph.sharing_score != host.sharing_score).any()


def test_the_graph_gets_no_tokens_that_it_cannot_refuse(tiny_bundle: Path, question: Prepared) -> None:
    with Bundle.open(tiny_bundle, score="graph") as bundle:
        bundle.score_settings = replace(bundle.score_settings, n_subspaces=1000)
        with refused("score", 128, 1000):
            bundle.answer(question, 1)


def test_the_engine_scores_on_a_gpu_and_the_host_on_a_cpu(copied_bundle: Path) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    engine = msgspec.to_builtins(engine_entry("engines/tensorrt-rtx/score.engine"))
    data["components"]["score"]["engines"] = {"tensorrt-rtx": engine}
    path.write_text(json.dumps(data))
    manifest = read_manifest(copied_bundle)
    scorers = {}
    for name in ("onnxruntime", "torch", "tensorrt", "tensorrt-rtx"):
        backend: Any = SimpleNamespace(name=name, has_proven_score=True)
        scorers[name] = choose_scorer(manifest, backend, None)
    assert scorers == {"onnxruntime": "host", "torch": "host", "tensorrt": "host", "tensorrt-rtx": "graph"}
    with Bundle.open(copied_bundle) as bundle:
        assert bundle.scorer == "host"


@pytest.mark.parametrize("has_passed", [True, False])
def test_an_engine_whose_kernels_failed_the_self_test_scores_nothing(copied_bundle: Path, has_passed: bool) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    engine = msgspec.to_builtins(engine_entry("engines/tensorrt-rtx/score.engine"))
    data["components"]["score"]["engines"] = {"tensorrt-rtx": engine}
    path.write_text(json.dumps(data))
    backend: Any = SimpleNamespace(name="tensorrt-rtx", has_proven_score=has_passed)
    assert Bundle(read_manifest(copied_bundle), backend).scorer == ("graph" if has_passed else "host")


def test_nor_does_it_where_it_is_asked_for(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "has_proven_score", False)
    monkeypatch.setattr(OnnxRuntimeBackend, "kernels", ("products simple failed",))
    with refused("score", "products simple failed"):
        Bundle.open(tiny_bundle, score="graph")


def test_a_bundle_without_the_component_opens_and_is_checked(copied_bundle: Path, question: Prepared) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    del data["components"]["score"]
    path.write_text(json.dumps(data))
    assert not has_score_graph(read_manifest(copied_bundle), "onnxruntime")
    with Bundle.open(copied_bundle) as bundle:
        assert bundle.answer(question, 1).sharing_score is not None
        stages = [check.stage for check in check_parity(bundle, read_reference(copied_bundle)).checks]
    assert "sharing_score" in stages and "score_graph" not in stages
    with refused(copied_bundle, "onnxruntime"):
        Bundle.open(copied_bundle, score="graph")


@pytest.mark.parametrize(("score", "backend", "where", "named"), [
    ("gpu", "onnxruntime", "score", "gpu"),
    ("graph", "torch", "bundle", "torch"),
])  # fmt: skip
def test_scorers_that_are_not_there(tiny_bundle: Path, score: str, backend: str, where: str, named: str) -> None:
    with refused(where, named):
        Bundle.open(tiny_bundle, backend, score=score)
