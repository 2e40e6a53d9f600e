"""ONNX Runtime with more weights than memory: when it is chosen, that it holds no copies, and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from va_export.proof.reference import prepared_of, read_reference
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.backends import onnxruntime as onnxruntime_backend
from va_export.runtime.backends.session_memory import (
    CHUNK,
    RESIDENT_FACTOR,
    must_map_weights,
    prefill_bytes,
    prefill_chunk,
)
from va_export.runtime.bundle import Bundle

WIDTH, LAYERS = 1536, 24
ONE = WIDTH * WIDTH * 4  # bytes of one matrix in float32

MEASURE = """
import sys, threading, time
import numpy as np
import onnxruntime as ort
from va_export.runtime.backends.session_memory import session_options

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())

path, streams = sys.argv[1], sys.argv[2] == "streams"
x = np.ones((1, int(sys.argv[3])), np.float16)
options = session_options(streams)
options.intra_op_num_threads = 1
before, peak, done = anonymous(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
session = ort.InferenceSession(
    path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"] if streams else None
)
y = session.run(None, {"x": x})[0]
done.set()
watcher.join()
import json
print(json.dumps([peak[0] - before, y.astype(float).tolist()]))
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x · W₁ · … · W₂₄ in float16, the weights (113 MB) beside the file."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((generator.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float16), f"w{i}")
        for i in range(LAYERS)
    ]
    names = ["x", *(f"h{i}" for i in range(LAYERS - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, WIDTH]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "chain", [x], [y], weights), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="chain.onnx.data", size_threshold=0)
    return path


def measured(chain: Path, how: str) -> tuple[int, np.ndarray]:
    command = [sys.executable, "-c", MEASURE, str(chain), how, str(WIDTH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, y = json.loads(done.stdout)
    return peak, np.array(y)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux' /proc")
def test_streaming_holds_a_few_matrices_and_computes_the_same(chain: Path) -> None:
    default, expected = measured(chain, "default")
    streaming, actual = measured(chain, "streams")
    assert default > LAYERS * ONE  # what it is for: all weights once more, in float32
    assert streaming < 6 * ONE  # one in use, one that comes next, and what the session itself takes
    # Sums in float32, each product rounded to float16 either way: one rounding apart a layer where the order differs.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2.0**-11 * LAYERS**0.5 * np.abs(expected).max())


def test_it_is_chosen_by_the_size_of_all_weights() -> None:
    assert not must_map_weights(1000, 0, int(1000 * RESIDENT_FACTOR) + 1)
    assert must_map_weights(1000, 0, int(1000 * RESIDENT_FACTOR) - 1)
    assert must_map_weights(1000, 100, int(1000 * RESIDENT_FACTOR) + 1)  # a prefill needs room too
    assert not must_map_weights(1000, 0)  # a kilobyte fits anywhere


def test_chunks_are_as_few_as_memory_allows_where_each_reads_the_weights() -> None:
    assert prefill_chunk(16, 4096, streams=False, available=0) == CHUNK
    assert prefill_chunk(16, 4096, streams=True, available=0) == CHUNK
    logits = 16 * 1000 * 4096 * 4  # of a thousand queries, in float32
    assert prefill_chunk(16, 4096, streams=True, available=4 * 2 * logits) == 1000
    assert prefill_bytes(16, 4096) == 2 * 16 * CHUNK * 4096 * 4


def test_all_listed_weights_count_and_nothing_else(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[int] = []
    monkeypatch.setattr(onnxruntime_backend, "must_map_weights", lambda size, _: weights.append(size))
    (copied_bundle / "onnx" / "dangling.data").symlink_to("nowhere")
    Bundle.open(copied_bundle).close()
    assert weights == [sum(path.stat().st_size for path in copied_bundle.glob("onnx/*.onnx.data"))]


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_a_bundle_answers_the_same(attention: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = read_reference(tiny_bundle)
    answers = {}
    for streams in (False, True):
        monkeypatch.setattr(onnxruntime_backend, "must_map_weights", lambda *_, streams=streams: streams)
        with Bundle.open(tiny_bundle, attention=attention) as bundle:
            answers[streams] = bundle.answer(
                prepared_of(reference),
                anchoring=Anchoring(key_log_gain=reference["key_log_gain"], value_gain=reference["value_gain"]),
                forced_tokens=reference["anchored_tokens"],
                return_logits=True,
            ).logits
    default, streaming = answers[False], answers[True]
    assert default is not None and streaming is not None
    # Fewer nodes are fused, so some float16 roundings differ; each way is as far from float32 as the other, so the two
    # are no farther apart than both distances together.
    to_reference = np.abs(default - reference["anchored_logits"]).max()
    assert np.abs(streaming - default).max() <= 2 * to_reference
