"""The decoder on a GPU: prefill, chunked prefill and decode against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_decoder import DecoderShape, decoder_feed, numpy_decoder, save_decoder

from va_export.bundle.tensors import Profiles
from va_export.errors import VaExportError
from va_export.runtime.backends.tensorrt_session import TensorRTSession
from va_export.tensorrt.api import FLAVORS, Flavor, available_flavors
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.cuda_device import CudaDevice
from va_export.tensorrt.engine_info import BuildRequest
from va_export.tensorrt.prepare_onnx import ATTENTIONS, Attention
from va_export.tensorrt.targets import CURRENT_GPU

pytestmark = pytest.mark.gpu


@pytest.fixture(params=FLAVORS)
def flavor(request: pytest.FixtureRequest) -> Flavor:
    if request.param not in available_flavors():
        pytest.skip(f"{request.param} is not installed")
    try:
        CudaDevice(request.param).close()
    except VaExportError as error:
        pytest.skip(f"no GPU to run on: {error.what}")
    return request.param


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_steps_match_float64(
    flavor: Flavor,
    plugin_library: Path,
    decoder_ranges: Profiles,
    capacity: int,
    tmp_path: Path,
    attention: Attention,
    dtype: str,
) -> None:
    shape = DecoderShape(layers=2, head_dim=64, dtype=dtype)
    path, engine = save_decoder(shape, tmp_path / "decoder.onnx"), tmp_path / "decoder.engine"
    request = BuildRequest(path, flavor, (CURRENT_GPU,), decoder_ranges, attention, capacity, plugin_library)
    build_engine(request, engine)
    session = TensorRTSession(engine, flavor, plugin_library)
    cache = session.new_cache(batch_size=2)
    state = decoder_feed(shape, capacity=capacity, q_len=1, past=[0, 0])
    for name in cache.buffers:
        state[name] = np.zeros_like(state[name])
    past = np.zeros(2, np.int64)
    tolerance = {"float32": 2e-5, "float16": 1e-2}[dtype]
    for step, q_len in enumerate((33, 7, 1, 1, 12)):
        feed = decoder_feed(shape, capacity=capacity, q_len=q_len, past=[0, 0], seed=step)
        feed = {**state, **{name: feed[name] for name in ("inputs_embeds", "position_ids")}, "past_length": past}
        expected = numpy_decoder(shape, feed)
        given = {name: value for name, value in feed.items() if name not in cache.buffers}
        logits = np.asarray(session.run(given, cache)["logits"], np.float64)
        error = np.abs(logits - expected["logits"]).max() / np.abs(expected["logits"]).max()
        assert error < tolerance, f"step {step} of {q_len} tokens"
        for name in cache.buffers:
            state[name] = expected[name.replace("past_key_values", "present")]
        past = past + q_len
    session.close()
