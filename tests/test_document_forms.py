"""Every document that is read, with one thing in it changed at a time: it is taken, or refused with its place, and
nothing else happens."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from va_export.bundle.write import File, Inputs
from va_export.checkpoint.hashes import Hashed
from va_export.documents import decode, encode
from va_export.errors import VaExportError
from va_export.evidence.document import Evidence, check_row, target_row
from va_export.export.narrowing import Loss
from va_export.export.recipe import RecipeFile
from va_export.export.shard_plan import ShardsRecord
from va_export.graph.stream_weights import Mark, Written
from va_export.graph.weight_layout import Traced, WeightSlot
from va_export.native.selftest.documents import Asked as SelftestAsked
from va_export.native.selftest.documents import AttentionShape, Finding, Record
from va_export.proof.documents import (
    Check,
    Environment,
    Greedy,
    Latency,
    LatencyRun,
    NotRun,
    OwnScore,
    Parity,
    ParityRun,
    PeakMemory,
    StageTimes,
    Tolerance,
)
from va_export.settings import GainSettings, Limits, ScoreSettings
from va_export.tensorrt.build_worker import Asked
from va_export.tensorrt.engine_cache import Entry
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.prepare_onnx import PluginNode
from va_export.tensorrt.profiles import DimensionRange, Profile, ShapeRange

TIMES = StageTimes(3, 1.0, 2.0, 2.0, 2.5, 2.6, 2.7, 3.0, 0.1)
CHECK = Check("decode_logits", True, 0.1, 0.01, 0.2, 0.02, 0.999, 0, 0, 1.0, Tolerance(None, 0.1, 0.9), 0.5, True)
INFO = EngineInfo(
    *(3, 1.5, {"A": 2}, (PluginNode("n", "AnchoredAttention"),), 2, "tensorrt-rtx", "1", ("sm89",)),
    profiles=(Profile("prefill", {"x": ShapeRange((1, 2), (1, 2), (2, 2))}),),
    input_shapes={"x": ("batch", 2)},
)
REQUEST = BuildRequest(Path("g"), "tensorrt-rtx", ("sm89",), {"p": {"batch": DimensionRange(1, 1, 2)}}, capacity=9)
EVIDENCE = {
    **{"device": {"name": "GPU", "driver": None, "cuda": "13", "torch": "2", "memory": 3}, "commit": "0" * 40},
    **{"date": "2026-01-31", "ceilings": {"matmul_bf16_tflops": 1.0, "copy_tb_per_s": None}},
    "checks": [check_row("numbers", True, shape={"tokens": 3}, dtype="f", max_rel_err=1e-4, tolerance=1e-3)],
    "timings": [
        {
            **{"op": "o", "shape": {"n": [1, None], "m": True}, "dtype": "f", "ours_us": 2.0, "ours_range_us": [1, 3]},
            **{"peers_us": {"a_plain": 2.0, "b_bias": None}, "peers_range_us": {"a_plain": [1, 3]}},
            **{"notes": {"b_bias": "refused"}, "peers_peak_bytes": {"a_plain": 1}, "repeats": 3},
        }
    ],
    "targets": [target_row("t", 1.0, "<=", 2.0, "us")],
}
DOCUMENTS: dict[str, Any] = {
    "recipe": RecipeFile(
        checkpoint="a/b", gains=GainSettings(9.5, 2.5), score=ScoreSettings(3), limits=Limits(1), config={"mode": "a"}
    ),
    "parity": Parity(
        *(True, "fp16", "PyTorch"),
        runs=(
            ParityRun("b", "cpu", "plugin", True, (CHECK,), (Greedy(True, (1, 2), (1,), 1),), OwnScore(1.0, 0, 1.0)),
        ),
        not_run=(NotRun("engines", "no GPU", "va-check"),),
    ),
    "latency": Latency(
        Environment("cpu", 2, 1 << 34, None, "Linux", "3.11", {"torch": "2"}),
        (
            LatencyRun(
                "b", "cpu", "plugin", True, 1, 3, 8, {"vision": TIMES}, PeakMemory(1, None), {"vision": TIMES}, ("k",)
            ),
        ),
    ),
    "cache entry": Entry({"graph": "1"}, "0" * 64, INFO),
    "build request": Asked(REQUEST, Path("e"), 3, 20),
    "self-test": Record(
        {"gpu": "0f", "sm_count": 132}, (Finding("decode", "simple", "", (1.0,)),), ("decode", "mma_sync")
    ),
    "self-test request": SelftestAsked(
        "l.so", 0, AttentionShape("float16", 8, 2, 128, 128, 8192, 2304), (("decode", "simple"),)
    ),
    "inputs": Inputs({"option precision": "fp16", "files": [1, 2]}),
    "file": File("onnx/a", 3, 4, "0" * 64),
    "hashed": Hashed("model.safetensors", 3, "0" * 64),
    "shards": ShardsRecord(3, "memory"),
    "graph": Traced("vision", "0" * 64, 3, (WeightSlot("w", "FLOAT", (2, 3), False, 0, 24),), {"shard": [0, 2]}),
    "mark": Written("0" * 64, Mark(1, 24, "0" * 64, {"w": Loss(6, 0, 0, 1, 2, 3.0)})),
    "evidence": EVIDENCE,
}
FORMS = {name: Evidence if name == "evidence" else type(document) for name, document in DOCUMENTS.items()}
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES = [
    *(None, True, 0, -1, 3, 1.5, -0.0, 1e308, float("nan"), float("inf"), 10**30, "", "x", "\ud800", "\0", "9" * 99),
    *([], {}, [None], {"x": None}, {"kind": 3}, DEEP),
]


def changes(tree: Any, whole: Any) -> Iterator[Any]:
    """`whole`, which holds `tree`, with each place in `tree` given other values, taken out and added to in turn."""
    places = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for place, before in list(places):
        for value in VALUES:
            tree[place] = value
            yield whole
        tree[place] = before
        if isinstance(before, dict | list):
            yield from changes(before, whole)
    if isinstance(tree, dict):
        for name in list(tree):
            value = tree.pop(name)
            yield whole
            for other in (f"{name}s", name.upper(), "[...]", "` - at `$[0]"):
                tree[other] = value
                yield whole
                del tree[other]
            tree[name] = value
    else:
        tree.append(copy.deepcopy(tree[0]) if tree else None)
        yield whole
        tree.pop()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_changed_document_is_taken_or_refused(name: str) -> None:
    tree = json.loads(encode(DOCUMENTS[name]))
    taken = refused = 0
    for changed in changes(tree, tree):
        try:
            found = decode(json.dumps(changed).encode(), FORMS[name], what="it", where="file", fix="mend it")
        except VaExportError as error:
            assert error.where is not None and error.where.split(": ")[0] == "file" and error.fix
            refused += 1
        else:
            assert decode(encode(found), FORMS[name], what="it", where="file", fix="") == found
            taken += 1
    assert refused > taken // 4 and refused > 20
    assert tree == json.loads(encode(DOCUMENTS[name])), "every change was taken back"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_misspelt_key_anywhere_is_refused(name: str) -> None:
    """Where the form says which keys there are: a key more is never passed over."""

    def tables(tree: Any) -> Iterator[dict[str, Any]]:
        if isinstance(tree, dict):
            yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
            yield from tables(inner)

    tree = json.loads(encode(DOCUMENTS[name]))
    tree["unknown_field"] = 1
    with pytest.raises(VaExportError):
        decode(json.dumps(tree).encode(), FORMS[name], what="it", where="file", fix="mend it")
    del tree["unknown_field"]
    for table in tables(tree):
        table["unknown_field"] = {}
        try:
            found = decode(json.dumps(tree).encode(), FORMS[name], what="it", where="file", fix="mend it")
        except VaExportError as error:
            assert "unknown_field" in error.what or error.where != "file"
        else:  # a mapping by name, or plain data: it must come out as it went in
            assert "unknown_field" in encode(found).decode() or table == tree.get("device")
        del table["unknown_field"]
