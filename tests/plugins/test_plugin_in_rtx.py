"""The built plugin library inside TensorRT-RTX, on a machine without a GPU: found, created, checked, built."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "rtx_program.py"


@pytest.fixture(scope="module")
def rtx(installed_library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt_rtx is not installed")
    directory = tmp_path_factory.mktemp("rtx")  # the parser asks for this name, and the wheel has only .so.1
    (directory / "libtensorrt_rtx.so").symlink_to(Path(spec.origin).parent / "libtensorrt_rtx.so.1")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(installed_library)],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(directory)},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_creator_declares_the_fields(rtx: dict[str, Any]) -> None:
    assert rtx["fields"] == [["scale", "PluginFieldType.FLOAT32"], ["is_causal", "PluginFieldType.INT32"]]


@pytest.mark.parametrize("integer", ["int32", "int64"])
def test_plugin_is_created_from_fields(rtx: dict[str, Any], integer: str) -> None:
    assert rtx["create"][integer] == {"created": True, "messages": []}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("missing", "field 'is_causal' is missing"),
        ("unknown", "field 'window' is unknown to version 1"),
        ("wrong_type", "field 'scale' holds 1 x int32, expected one float32"),
    ],
)
def test_wrong_fields_are_refused(rtx: dict[str, Any], fields: str, reason: str) -> None:
    expected = {"created": False, "messages": [f"AnchoredAttention (node 'attn'): {reason}"]}
    assert rtx["create"][fields] == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("six_inputs", "HALF"), ("five_inputs", "HALF"), ("bfloat16", "BF16"), ("float32", "FLOAT")]
)
def test_onnx_node_builds_an_engine(rtx: dict[str, Any], name: str, dtype: str) -> None:
    built = rtx["build"][name]
    assert built["messages"] == []
    assert built["engine_bytes"] > 0
    assert built["output"] == [f"DataType.{dtype}", [-1, 8, -1, 32]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("four_inputs", "it has 4 inputs, expected 5 to 6"),
        ("rank", "value_gain has 3 dimensions, expected 2: (batch, kv_len)"),
        ("mixed_types", "key is float32 but query is float16: they must be equal"),
        ("gain_type", "key_log_gain is float16, expected float32"),
        ("length_type", "kv_length is int32, expected int64"),
        ("kv_heads", "query has 8 heads, which is no multiple of the 3 heads of key and value"),
        ("kv_heads_differ", "value has kv_heads = 2 but key has 4"),
        ("head_dim", "query has head_dim = 260, supported are 1 to 256"),
        ("profile", "value_gain has kv_len = 7 but key has 1"),
        ("no_causal", "field 'is_causal' is missing"),
        ("scale", "field 'scale' is -1.000000, expected a number above 0"),
    ],
)
def test_wrong_network_is_refused_with_the_reason(rtx: dict[str, Any], name: str, reason: str) -> None:
    refused = rtx["build"][name]
    assert refused["engine_bytes"] == 0
    assert f"AnchoredAttention (node 'attn'): {reason}" in refused["messages"]


@pytest.mark.parametrize(("name", "tokens"), [("float16", -1), ("bfloat16", -1), ("float32", 100)])
def test_score_node_builds_an_engine(rtx: dict[str, Any], name: str, tokens: int) -> None:
    built = rtx["score"][name]
    assert built["messages"] == []
    assert built["engine_bytes"] > 0
    assert built["outputs"] == [["DataType.FLOAT", [tokens]], ["DataType.INT64", [tokens]]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("type", "tokens is int32, expected one of [float16, bfloat16, float32]"),
        ("few_tokens", "tokens has N = 16, supported are 17 to 65536 with n_subspaces = 17"),
        ("rank", "pca_rank = 65 is more than tokens of sizes (-1, 64) have"),
        ("settings", "field 'rho' is -1, supported are 9.999e-21 to 1.0001e+20"),
        ("missing", "field 'eps' is missing"),
    ],
)
def test_wrong_score_is_refused_with_the_reason(rtx: dict[str, Any], name: str, reason: str) -> None:
    refused = rtx["score"][name]
    assert refused["engine_bytes"] == 0
    assert f"SubspaceScore (node 'attn'): {reason}" in refused["messages"]
