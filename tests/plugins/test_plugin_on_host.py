"""The TensorRT plugin's own code around its kernel compiled for the CPU: sizes and pointers must arrive."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from attention_case import Case, Guarded, random_inputs, reference, run_on_host

from va_export.evidence.plugin_host import Plugin, PluginHost
from va_export.native.anchored_attention_params import AnchoredAttentionParams

CASES = [
    Case(5, 19, batch=2, query_heads=6, kv_heads=3, head_dim=24, value_head_dim=40, dtype="float16"),
    Case(5, 19, batch=2, query_heads=4, kv_heads=1, head_dim=16, kv_length=(7, 19), dtype="bfloat16"),
    Case(1, 200, query_heads=4, kv_heads=2, dtype="float16"),  # keys are split: it needs the workspace
    Case(3, 9, batch=1, head_dim=8, is_causal=False, scale=0.3),
]


def enqueue_in_its_workspace(plugin: Plugin) -> Callable[[AnchoredAttentionParams], int]:
    """Runs with exactly the bytes that the plugin declares, between guards."""

    def launch(params: AnchoredAttentionParams) -> int:
        workspace = Guarded(np.full(plugin.workspace_bytes(params) // 4, np.nan, np.float32))
        params.workspace = workspace.address if workspace.view.size else None
        status = plugin.enqueue(params)
        workspace.assert_guards_intact(whole=False)
        return status

    return launch


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_serialised_and_cloned_plugin_computes_the_op(plugin_host: PluginHost, case: Case) -> None:
    inputs = random_inputs(case)
    expected, magnitude = reference(case, inputs)

    def launch(params: AnchoredAttentionParams) -> int:
        loaded = plugin_host.make(params)
        assert loaded is not None
        return enqueue_in_its_workspace(loaded.attach())(params)

    actual = run_on_host(launch, case, inputs)
    tolerance = {"float32": 4e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[case.dtype]
    assert np.all(np.abs(actual - expected) <= tolerance * magnitude + 6e-8)
    assert plugin_host.log() == ""


def parameters(**changes: object) -> AnchoredAttentionParams:
    """Of a small launch on memory that lives as long as the tests."""
    memory = MEMORY.ctypes.data
    params = AnchoredAttentionParams(
        query=memory, key=memory, value=memory, key_log_gain=memory, value_gain=memory, out=memory,
        batch=1, query_heads=2, kv_heads=2, q_len=1, kv_len=1, head_dim=8, value_head_dim=8, scale=1.0, dtype=2,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(params, name, value)
    return params


MEMORY = np.zeros(1024, np.float32)


def test_contexts_do_not_share_what_they_know(plugin_host: PluginHost) -> None:
    """Two contexts of one plugin, called in turn with other sizes, one with and one without lengths."""
    with_length = Case(4, 60, batch=2, kv_length=(60, 9), dtype="float16", is_causal=False)
    without = Case(1, 130, query_heads=4, dtype="float16", is_causal=False)
    loaded = plugin_host.make(parameters(scale=0.125, is_causal=0))
    assert loaded is not None
    contexts = {case: loaded.attach() for case in (with_length, without)}
    del loaded  # the engine's own object may go before its contexts
    for case in (with_length, without, with_length):
        inputs = random_inputs(case)
        actual = run_on_host(enqueue_in_its_workspace(contexts[case]), case, inputs)
        expected, magnitude = reference(case, inputs)
        assert np.all(np.abs(actual - expected) <= 2.0**-10 * magnitude + 6e-8)


def test_workspace_of_the_largest_sizes_serves_smaller_ones(
    plugin_host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VA_EXPORT_ATTENTION_KERNEL", "tensor_core")
    sizes = {"batch": 2, "query_heads": 4, "kv_heads": 2, "q_len": 40, "kv_len": 500}
    largest = parameters(**sizes, head_dim=64, value_head_dim=64, scale=0.125, is_causal=1, dtype=0)
    plugin = plugin_host.make(largest)
    assert plugin is not None
    declared, context = plugin.workspace_bytes(largest), plugin.attach()
    assert declared > 0
    workspace = Guarded(np.full(declared // 4, np.nan, np.float32))

    def launch(params: AnchoredAttentionParams) -> int:
        params.workspace = workspace.address
        return context.enqueue(params)

    for q_len, kv_len, batch in ((1, 500, 1), (1, 500, 2), (16, 500, 2), (40, 65, 2), (7, 1, 1)):
        case = Case(q_len, kv_len, batch=batch, query_heads=4, kv_heads=2, dtype="float16")
        inputs = random_inputs(case)
        expected, magnitude = reference(case, inputs)
        assert np.all(np.abs(run_on_host(launch, case, inputs) - expected) <= 2.0**-10 * magnitude + 6e-8)
        workspace.assert_guards_intact(whole=False)


def test_timing_cache_id_names_what_decides_the_time(plugin_host: PluginHost) -> None:
    made = {
        (scale, causal): plugin_host.make(parameters(scale=scale, is_causal=causal), serialised=False)
        for scale in (0.5, 1.0)
        for causal in (0, 1)
    }
    ids = {options: plugin.timing_cache_id for options, plugin in made.items() if plugin is not None}
    assert ids[0.5, 0] == ids[1.0, 0] != ids[0.5, 1] == ids[1.0, 1]
    assert all("AnchoredAttention" in name for name in ids.values())


Q, K, V, GAIN, LENGTH = (2, 4, 5, 64), (2, 2, 9, 64), (2, 2, 9, 32), (2, 9), (2,)
OUT = (2, 4, 5, 32)
FITTING = [(Q, "float16"), (K, "float16"), (V, "float16"), (GAIN, "float32"), (GAIN, "float32"), (LENGTH, "int64")]


def build(host: PluginHost, *changes: tuple[int, Sequence[int], str], drop: int = 0) -> tuple[str | None, str]:
    """What refuses the build, and what is logged; changes are (input, sizes, type)."""
    tensors = [*FITTING]
    for index, sizes, name in changes:
        tensors[index] = (tuple(sizes), name)
    plugin = host.make(parameters(), serialised=False)
    assert plugin is not None
    refused_by = plugin.build([*tensors[: len(tensors) - drop], (OUT, tensors[0][1])])
    return refused_by, host.log().strip().removeprefix("AnchoredAttention (node 'node'): ")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("drop", [0, 1])
def test_what_fits_is_built(plugin_host: PluginHost, name: str, drop: int) -> None:
    changes = [(0, Q, name), (1, K, name), (2, V, name)]
    assert build(plugin_host, *changes, drop=drop) == (None, "")


REFUSALS = [
    ([(0, (4, 5, 64), "float16")], "configuration", "query has 3 dimensions, expected 4: "
     "(batch, query_heads, q_len, head_dim)"),
    ([(3, (9,), "float32")], "configuration", "key_log_gain has 1 dimensions, expected 2: (batch, kv_len)"),
    ([(5, (2, 1), "int64")], "configuration", "kv_length has 2 dimensions, expected 1: (batch)"),
    ([(1, K, "bfloat16")], "types", "key is bfloat16 but query is float16: they must be equal"),
    ([(2, V, "float32")], "types", "value is float32 but query is float16: they must be equal"),
    ([(0, Q, "int8"), (1, K, "int8"), (2, V, "int8")], "types",
     "query is int8, expected one of [float16, bfloat16, float32]"),
    ([(4, GAIN, "float16")], "types", "value_gain is float16, expected float32"),
    ([(5, LENGTH, "int32")], "types", "kv_length is int32, expected int64"),
    ([(0, (2, 3, 5, 64), "float16")], "configuration",
     "query has 3 heads, which is no multiple of the 2 heads of key and value"),
    ([(0, (2, 4, 5, 257), "float16"), (1, (2, 2, 9, 257), "float16")], "configuration",
     "query has head_dim = 257, supported are 1 to 256"),
    ([(2, (2, 2, 9, 300), "float16")], "configuration", "value has value_head_dim = 300, supported are 1 to 256"),
    ([(1, (2, 2, 9, 32), "float16")], "configuration", "key has head_dim = 32 but query has 64"),
    ([(2, (2, 2, 8, 32), "float16")], "configuration", "value has kv_len = 8 but key has 9"),
    ([(3, (1, 9), "float32")], "configuration", "key_log_gain has batch = 1 but query has 2"),
    ([(5, (3,), "int64")], "configuration", "kv_length has batch = 3 but query has 2"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "refused_by", "message"), REFUSALS)
def test_a_build_is_refused_with_its_reason(
    plugin_host: PluginHost, changes: list[tuple[int, tuple[int, ...], str]], refused_by: str, message: str
) -> None:
    assert build(plugin_host, *changes) == (refused_by, message)


def test_too_few_inputs_are_refused(plugin_host: PluginHost) -> None:
    assert build(plugin_host, drop=2) == ("types", "it has 4 inputs, expected 5 to 6")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "field 'scale' is 0.000000, expected a number above 0"),
        ({"scale": float("nan")}, "field 'scale' is nan, expected a number above 0"),
        ({"is_causal": 2}, "field 'is_causal' is 2.000000, expected 0 or 1"),
        ({"query_heads": 3, "kv_heads": 2}, "query has 3 heads, which is no multiple of the 2 heads of key and value"),
        ({"head_dim": 257}, "query has head_dim = 257, supported are 1 to 256"),
        ({"value_head_dim": 300}, "value has value_head_dim = 300, supported are 1 to 256"),
        ({"q_len": 0}, "the launch failed: invalid argument"),
    ],
    ids=str,
)
def test_what_the_plugin_refuses_it_explains(plugin_host: PluginHost, change: dict[str, object], message: str) -> None:
    params = parameters(**change)
    plugin = plugin_host.make(params)
    assert plugin is None or plugin.attach().enqueue(params) != 0
    assert plugin_host.log() == f"AnchoredAttention (node 'node'): {message}\n"


@pytest.mark.parametrize("name", ["query", "key", "value", "key_log_gain", "value_gain", "out"])
def test_null_pointers_are_refused_at_run_time(plugin_host: PluginHost, name: str) -> None:
    plugin = plugin_host.make(parameters())
    assert plugin is not None
    assert plugin.attach().enqueue(parameters(**{name: None})) != 0
    assert plugin_host.log() == "AnchoredAttention (node 'node'): the launch failed: invalid argument\n"


def test_the_installed_library_is_built_as_tensorrt_would(
    plugin_host_path: Path, installed_library: Path, tmp_path: Path
) -> None:
    """What needs no GPU of the real libva_plugins.so: scripts/gpu_check.py goes on from here."""
    # A copy, for the host knows one library at a time, and this process may have it already.
    host = PluginHost(Path(shutil.copy(plugin_host_path, tmp_path)), installed_library)
    plugin = host.make(parameters())
    assert plugin is not None
    assert plugin.build([*FITTING, (OUT, "float16")]) is None
    assert plugin.attach().build([*FITTING[:5], (OUT, "float16")]) is None
    assert plugin.build([*FITTING[:1], ((2, 2, 9, 64), "float32"), *FITTING[2:], (OUT, "float16")]) == "types"
    assert "key is float32 but query is float16" in host.log()
    decode = parameters(batch=2, query_heads=8, kv_heads=2, kv_len=4096, head_dim=128, value_head_dim=128, dtype=0)
    assert plugin.workspace_bytes(decode) > 0
