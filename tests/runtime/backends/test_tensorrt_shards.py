"""How the TensorRT backend chains shards over devices: with recording stand-ins, and on two GPUs where there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from synthetic_manifest import component_entry, engine_entry, manifest_of

from va_export.bundle.document import ComponentEntry
from va_export.bundle.manifest import Manifest
from va_export.errors import VaExportError
from va_export.native.selftest.documents import AttentionShape
from va_export.native.selftest.prove import ProvenKernels
from va_export.progress import StageDisplay
from va_export.proof.run import check_bundle
from va_export.runtime.backends import tensorrt as tensorrt_backend
from va_export.runtime.backends.tensorrt import TensorRTBackend
from va_export.runtime.backends.tensorrt_session import KvCache
from va_export.runtime.bundle import Bundle
from va_export.settings import Limits
from va_export.tensorrt.api import available_flavors
from va_export.tensorrt.cuda_device import CudaDevice, DeviceBuffer

LAYERS = {"decoder_0": (0, 1), "decoder_1": (1, 2), "decoder_2": (2, 3)}


class Device:
    """A device that has nothing but a number."""

    made = 0

    def __init__(self, flavor: str, index: int = 0) -> None:
        self.index, self.closed = index, False
        Device.made += 1

    def close(self) -> None:
        self.closed = True


def prove(path: Path, device: int, shape: AttentionShape) -> ProvenKernels:
    """The self-test, which GPU 3 fails; nothing may be on any GPU yet."""
    assert Device.made == 0
    sizes = (shape.dtype, shape.query_heads, shape.kv_heads, shape.head_dim, shape.capacity, shape.tuned_length)
    return ProvenKernels({}, device != 3, f"{path} on {device}: {sizes}")


class Code:
    """Everything is admitted, and has its own name."""

    library = Path("plugin.so")

    def engine(self, name: str) -> Path:
        return Path(name)

    def check_unchanged(self) -> None: ...


CODE: Any = Code()


class Session:
    """An engine whose output is its input plus one, and which remembers what it was given."""

    def __init__(self, path: Path, flavor: str, library: Path | None, device: Device) -> None:
        self.name, self.library, self.device = path.stem, library, device
        self.received: list[int] = []
        self.runs: list[dict[str, Any]] = []
        self.cache: object = None

    def new_cache(self, batch: int) -> KvCache:
        self.cache = KvCache({})
        return self.cache

    def receive(self, name: str, buffer: DeviceBuffer, source: Device) -> DeviceBuffer:
        if source is not self.device:
            self.received.append(source.index)
        return buffer

    def run(self, inputs: dict[str, Any], cache: object = None, keep: tuple[str, ...] = ()) -> dict[str, Any]:
        self.runs.append({**inputs, "cache": cache, "keep": keep})
        if keep:  # hidden states stay here; the address stands for their value
            first = inputs.get("inputs_embeds", inputs.get("hidden_states"))
            value = first.address if isinstance(first, DeviceBuffer) else int(first[0, 0, 0])
            return {keep[0]: DeviceBuffer(value + 1, (1, 1, 1), np.dtype(np.float32))}
        return {"logits": np.array([[inputs["hidden_states"].address + 1]], np.float16)}

    def close(self) -> None: ...


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    def entry(name: str) -> ComponentEntry:
        engines = {"tensorrt-rtx": engine_entry(f"engines/{name}.engine")}
        return component_entry(name, LAYERS.get(name), engines=engines)

    return manifest_of(
        tmp_path,
        {name: entry(name) for name in ("vision", "embedding", *LAYERS)},
        num_layers=3,
        files=["plugin.so"],
        limits=Limits(max_input_len=8, max_kv_cache_capacity=8),
        plugin={"library": "plugin.so"},
    )


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "CudaDevice", Device)
    monkeypatch.setattr(tensorrt_backend, "require_gpu", lambda _: None)
    monkeypatch.setattr(tensorrt_backend, "take_proven_kernels", prove)
    Device.made = 0
    monkeypatch.setattr(tensorrt_backend, "TensorRTSession", Session)


def decode(backend: TensorRTBackend) -> float:
    cache = backend.new_cache(1, 8)
    gains = np.zeros((1, 8), np.float32), np.ones((1, 8), np.float32)
    position_ids = np.full((1, 1, 1), 9)
    logits = backend.decode(np.full((1, 1, 1), 5, np.float32), position_ids, *gains, np.zeros(1, np.int64), cache)
    assert logits.dtype == np.float32
    return float(logits[0, 0])


@pytest.mark.usefixtures("stand_ins")
def test_hidden_states_pass_through_all_shards_and_change_devices_once(manifest: Manifest) -> None:
    backend = TensorRTBackend(manifest, "tensorrt-rtx", CODE, (4, 2))
    sessions: dict[str, Any] = backend._sessions
    assert {name: session.device.index for name, session in sessions.items()} == {
        "vision": 4,
        "embedding": 4,
        "decoder_0": 4,
        "decoder_1": 4,
        "decoder_2": 2,
    }
    assert sessions["decoder_0"].device is sessions["decoder_1"].device
    assert decode(backend) == 5 + 3
    assert [sessions[name].received for name in LAYERS] == [[], [], [4]]
    for name in LAYERS:
        (run,) = sessions[name].runs
        assert run["cache"] is sessions[name].cache
        assert {"position_ids", "key_log_gain", "value_gain", "past_length"} < set(run)
        assert run["position_ids"].item() == 9
        assert sessions[name].library == Code.library
    assert [sessions[name].runs[0]["keep"] for name in LAYERS] == [*[("next_hidden_states",)] * 2, ()]
    assert sessions["vision"].library is None
    assert list(backend.part_milliseconds) == list(LAYERS) and backend.device == "cuda:4,2"
    devices: list[Any] = list(backend._devices.values())
    backend.close()
    assert all(device.closed for device in devices) and len(devices) == 2


@pytest.mark.usefixtures("stand_ins")
def test_one_device_moves_nothing(manifest: Manifest) -> None:
    backend = TensorRTBackend(manifest, "tensorrt-rtx", CODE)
    assert decode(backend) == 5 + 3 and backend.device == "cuda"
    assert backend.prefill_chunk(20) == 8  # what the profiles take
    sessions: dict[str, Any] = backend._sessions
    assert [sessions[name].received for name in LAYERS] == [[], [], []]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("second", [2, 3])
def test_kernels_are_proven_on_every_gpu_before_anything_is_there(manifest: Manifest, second: int) -> None:
    backend = TensorRTBackend(manifest, "tensorrt-rtx", CODE, (4, second))
    text, precision = manifest.data.model.text, {"fp16": "float16", "fp32": "float32"}[manifest.data.precision]
    sizes = (precision, text.num_heads, text.num_kv_heads, text.head_dim, 8, manifest.data.limits.opt_input_len)
    assert backend.kernels == tuple(f"plugin.so on {index}: {sizes}" for index in (4, second))
    assert backend.has_proven_score == (second != 3)


@pytest.mark.usefixtures("stand_ins")
def test_more_devices_than_shards_are_refused(manifest: Manifest) -> None:
    with refused("--devices", 4, 3):
        TensorRTBackend(manifest, "tensorrt-rtx", CODE, (0, 1, 2, 3))


@pytest.mark.gpu
def test_shards_on_one_gpu_pass_parity(sharded_bundle: Path) -> None:
    if "tensorrt-rtx" not in available_flavors():
        pytest.skip("tensorrt_rtx is not installed")
    try:
        Bundle.open(sharded_bundle, "tensorrt-rtx").close()
    except VaExportError as error:
        pytest.skip(f"no GPU that the engines are built for: {error.what}")
    proof = check_bundle(sharded_bundle, "tensorrt-rtx", StageDisplay(), iterations=1)
    assert proof.parity.passed
    assert "prefill/decoder_1" in proof.latency.runs[0].stages


@pytest.mark.gpu
def test_two_gpus_compute_what_one_does(sharded_bundle: Path) -> None:
    if "tensorrt-rtx" not in available_flavors():
        pytest.skip("tensorrt_rtx is not installed")
    for index in (0, 1):
        try:
            CudaDevice("tensorrt-rtx", index).close()
        except VaExportError as error:
            pytest.skip(f"two GPUs are needed: {error.what}")
    results = []
    for devices in ((0,), (0, 1), (1, 0)):
        with Bundle.open(sharded_bundle, "tensorrt-rtx", devices=devices) as bundle:
            results.append(bundle.generate(input_ids=np.arange(40), max_new_tokens=6, return_logits=True))
    for other in results[1:]:
        np.testing.assert_array_equal(other.tokens, results[0].tokens)
        # The same engines on the same numbers; two GPUs of one kind finish them alike.
        np.testing.assert_allclose(other.logits, results[0].logits, rtol=2**-10, atol=2**-10)
