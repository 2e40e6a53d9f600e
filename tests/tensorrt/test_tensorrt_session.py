"""Binding logic on an engine in host memory; the real one is tested in test_gpu_decoder.py."""

from __future__ import annotations

import ctypes
import importlib
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import CAPACITY, FakeDevice, FakeEngine, TensorIOMode
from refusals import refused

from va_export.errors import VaExportError
from va_export.runtime.backends import tensorrt_session
from va_export.runtime.backends.tensorrt_session import GRAPHS_VARIABLE, TensorRTSession
from va_export.tensorrt import cuda_device
from va_export.tensorrt.api import TensorRT, select_polygraphy_backend
from va_export.tensorrt.cuda_device import CudaDevice, DeviceBuffer


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def session(device: FakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRTSession:
    engine = FakeEngine(device)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data[:4] == b"good" else None)
    strategies = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
    module = SimpleNamespace(TensorIOMode=TensorIOMode, Runtime=lambda logger: runtime, CudaGraphStrategy=strategies)
    log = SimpleNamespace(logger=None, cause=lambda: "the fake said no")
    monkeypatch.setattr(tensorrt_session, "load_tensorrt", lambda f: TensorRT(f, module, "1.0"))
    monkeypatch.setattr(tensorrt_session, "create_build_log", lambda api: log)
    path = tmp_path / "decoder.engine"
    path.write_bytes(b"good engine")
    return TensorRTSession(path, "tensorrt-rtx", device=device)  # type: ignore[arg-type]


def _context(session: TensorRTSession) -> Any:
    return session._context


def _feed(tokens: list[list[float]], past: list[int]) -> dict[str, Any]:
    return {"tokens": np.array(tokens, np.float32), "past_length": np.array(past, np.int64)}


def test_the_cache_is_written_in_place_over_steps(session: TensorRTSession, device: FakeDevice) -> None:
    cache = session.new_cache(2)
    assert cache.size_bytes == 2 * CAPACITY * 4
    first = session.run(_feed([[1, 2, 3], [4, 5, 6]], [0, 0]), cache)
    assert set(first) == {"total", "doubled"}  # the cache is no result
    np.testing.assert_array_equal(first["total"], [6, 15])
    second = session.run(_feed([[10], [20]], [3, 3]), cache)
    np.testing.assert_array_equal(second["total"], [16, 35])
    (buffer,) = cache.buffers.values()
    np.testing.assert_array_equal(device.download(buffer)[0, 0, :, 0], [1, 2, 3, 10, 0, 0, 0, 0])
    assert buffer.address not in device.uploads


def test_rtx_captures_graphs_unless_told_not_to(
    session: TensorRTSession, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = SimpleNamespace(CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"))
    strategies = []
    for flavor, variable in (("tensorrt-rtx", None), ("tensorrt-rtx", "0"), ("tensorrt", None)):
        monkeypatch.delenv(GRAPHS_VARIABLE, raising=False)
        if variable is not None:
            monkeypatch.setenv(GRAPHS_VARIABLE, variable)
        engine: Any = FakeEngine(device)
        tensorrt_session._create_context(TensorRT(flavor, module, "1.0"), engine)  # type: ignore[arg-type]
        strategies.append(engine.strategy)
    assert strategies == ["whole graph", "disabled", "disabled"]


def test_two_caches_do_not_mix(session: TensorRTSession) -> None:
    one, two = session.new_cache(1), session.new_cache(1)
    session.run(_feed([[1, 1]], [0]), one)
    session.run(_feed([[5, 5]], [0]), two)
    np.testing.assert_array_equal(session.run(_feed([[1]], [2]), one)["total"], [3])


def test_a_row_of_a_cache_is_the_same_memory(
    session: TensorRTSession, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = session.new_cache(2)
    with pytest.raises(VaExportError) as caught:  # of so small a cache, and TensorRT wants aligned addresses
        cache.row(1)
    assert caught.value.where == "answer_batch" and caught.value.fix
    monkeypatch.setattr(tensorrt_session, "_ALIGNMENT", 1)
    (whole,) = cache.buffers.values()
    (row,) = cache.row(1).buffers.values()
    # The fake's addresses are keys of a table, so that an address inside of an array is an entry of its own.
    assert row.shape == (1, 1, CAPACITY, 1) and row.address == whole.address + CAPACITY * 4
    device.memory[row.address] = device.memory[whole.address][CAPACITY * 4 :]
    session.run(_feed([[7, 8]], [0]), cache.row(1))
    np.testing.assert_array_equal(device.download(whole)[:, 0, :2, 0], [[0, 0], [7, 8]])
    total = session.run(_feed([[1], [1]], [0, 2]), cache)["total"]
    np.testing.assert_array_equal(total, [1, 16])


def test_the_tightest_profile_is_chosen_and_switched_once(session: TensorRTSession) -> None:
    cache = session.new_cache(1)
    session.run(_feed([[1, 2]], [0]), cache)
    assert _context(session).profiles == []  # profile 0 is active from the start
    session.run(_feed([[3]], [2]), cache)
    session.run(_feed([[4]], [3]), cache)
    session.run(_feed([[5, 6]], [4]), cache)
    assert _context(session).profiles == [1, 0]


def test_memory_grows_and_is_reused(session: TensorRTSession, device: FakeDevice) -> None:
    cache = session.new_cache(1)
    session.run(_feed([[1, 2]], [0]), cache)
    small = _context(session).addresses["tokens"]
    session.run(_feed([[1, 2, 3, 4, 5]], [0]), cache)
    large = _context(session).addresses["tokens"]
    assert large != small and small not in device.memory
    session.run(_feed([[9]], [0]), cache)
    assert _context(session).addresses["tokens"] == large
    np.testing.assert_array_equal(session.run(_feed([[7, 8, 9, 1, 2]], [0]), cache)["doubled"], [[14, 16, 18, 2, 4]])


def test_outputs_can_stay_on_the_device_and_come_back_as_inputs(session: TensorRTSession, device: FakeDevice) -> None:
    cache = session.new_cache(1)
    kept = session.run(_feed([[1, 2]], [0]), cache, keep_on_device=["doubled"])["doubled"]
    assert isinstance(kept, DeviceBuffer) and kept.shape == (1, 2)
    copy = device.zeros(kept.shape, kept.dtype)
    device.upload(device.download(kept), copy.address)
    uploads = len(device.uploads)
    again = session.run({"tokens": copy, "past_length": np.array([0], np.int64)}, cache)
    np.testing.assert_array_equal(again["total"], [6])
    assert len(device.uploads) == uploads + 1  # past_length only


def test_arrays_of_another_device_are_copied_over(session: TensorRTSession, device: FakeDevice) -> None:
    other = FakeDevice()
    theirs = other.zeros((1, 2), np.dtype(np.float32))
    other.upload(np.array([[3, 4]], np.float32), theirs.address)
    here = session.receive("tokens", theirs, other)  # type: ignore[arg-type]
    assert here.address in device.memory and here.shape == (1, 2)
    assert session.receive("tokens", here, device) is here  # type: ignore[arg-type]
    uploads, activations = len(device.uploads), device.activations
    feed = {"tokens": here, "past_length": np.array([0], np.int64)}
    np.testing.assert_array_equal(session.run(feed, session.new_cache(1))["total"], [7])
    assert len(device.uploads) == uploads + 1 and device.activations > activations


def test_a_transposed_array_is_copied_right(session: TensorRTSession) -> None:
    feed = {"tokens": np.arange(6, dtype=np.float32).reshape(3, 2).T, "past_length": np.zeros(2, np.int64)}
    out = session.run(feed, session.new_cache(2))
    np.testing.assert_array_equal(out["doubled"], [[0, 4, 8], [2, 6, 10]])


@pytest.mark.parametrize(
    ("change", "where", "named"),
    [
        ({"tokens": None}, "inputs", ["tokens"]),
        ({"mask": np.zeros(1)}, "inputs", ["mask"]),
        ({"tokens": np.zeros((1, 2))}, "tokens", ["float32", "float64"]),
        ({"tokens": np.zeros(2, np.float32)}, "tokens", ["float32", (2,)]),
        ({"tokens": np.zeros((1, 7), np.float32)}, "tokens", [(1, 1), (2, 6), (1, 7)]),
        ({"tokens": np.zeros((1, 0), np.float32)}, "tokens", [(1, 0)]),
    ],
)
def test_wrong_inputs_are_named(
    session: TensorRTSession, change: dict[str, Any], where: str, named: list[object]
) -> None:
    feed = {name: value for name, value in {**_feed([[1, 2]], [0]), **change}.items() if value is not None}
    with refused(where, *named):
        session.run(feed, session.new_cache(1))


def test_a_missing_cache_is_named(session: TensorRTSession) -> None:
    with refused("inputs", "past_key_values.0.key"):
        session.run(_feed([[1]], [0]))


def test_a_failed_run_says_why(session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_context(session), "execute_async_v3", lambda stream: False)
    with refused("decoder.engine", "the fake said no", fix=False):
        session.run(_feed([[1]], [0]), session.new_cache(1))


def test_closing_frees_what_the_session_made(session: TensorRTSession, device: FakeDevice) -> None:
    cache = session.new_cache(1)
    session.run(_feed([[1]], [0]), cache)
    session.close()
    assert set(device.memory) == {buffer.address for buffer in cache.buffers.values()}
    assert not device.closed  # it was given, so its owner closes it


def test_an_engine_that_cannot_be_used_is_named(session: TensorRTSession, device: FakeDevice, tmp_path: Path) -> None:
    bad = tmp_path / "bad.engine"
    bad.write_bytes(b"other")
    with refused(bad, "the fake said no"):
        TensorRTSession(bad, "tensorrt-rtx", device=device)  # type: ignore[arg-type]
    with refused(tmp_path / "none.engine", fix=False):
        TensorRTSession(tmp_path / "none.engine", "tensorrt-rtx", device=device)  # type: ignore[arg-type]


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_without_libcudart_the_hint_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that pyproject.toml has it in, and the driver that it needs."""
    select_polygraphy_backend("tensorrt-rtx")
    cuda = importlib.import_module("polygraphy.cuda")
    monkeypatch.setattr(cuda_device, "require_gpu", lambda _: None)
    monkeypatch.setattr(cuda, "wrapper", lambda: ctypes.CDLL("libcudart-that-is-not-there.so"))
    with refused("TensorRT runtime", "libcudart") as error:
        CudaDevice("tensorrt-rtx")
    assert all(word in (error.value.fix or "") for word in ("va-export[rtx]", "nvidia-cuda-runtime", "580"))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(entry.startswith("nvidia-cuda-runtime>=13") for entry in project["optional-dependencies"]["rtx"])


@pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_gets_one_clear_error(rtx: TensorRT, tmp_path: Path) -> None:
    with refused("TensorRT runtime", "NVIDIA") as error:
        TensorRTSession(tmp_path / "any.engine", "tensorrt-rtx")
    assert error.value.fix is not None and "onnxruntime" in error.value.fix
    with refused("TensorRT runtime", "NVIDIA"):
        CudaDevice("tensorrt-rtx")
