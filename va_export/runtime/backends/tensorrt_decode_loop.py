"""Greedy decoding that stays on the GPU: per token one launch, and one number copied back.

A step embeds the token, runs the decoder's parts, chooses the next token, puts it where the embedding reads it and
counts the position: all of it reads and writes the same memory every time. Full TensorRT's steps are captured into one
CUDA graph after an answer's first; TensorRT-RTX captures its engines by itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from va_export.bundle.decoder_shards import DecoderShard
from va_export.errors import VaExportError
from va_export.native.greedy_step import GreedyStepParams
from va_export.runtime.backends.tensorrt_session import KvCache, TensorRTSession
from va_export.tensorrt.cuda_device import CudaDevice, CudaGraph, DeviceBuffer


class DecodeLoop:
    """One sequence's steps over one KV cache, all parts of the decoder on one device.

    Args:
        device: where all sessions are.
        embedding: its session.
        parts: the decoder's parts in order, each with its session and cache.
        width: values of the visual tokens that the embedding wants to be given even where there are none.
        axes: positions of a token.
        capacity: slots of the cache.
        library: the plugin library, with the greedy step bound.
        captures: whether the steps are put into a CUDA graph.
    """

    def __init__(
        self,
        device: CudaDevice,
        embedding: TensorRTSession,
        parts: Sequence[tuple[DecoderShard, TensorRTSession, KvCache]],
        width: int,
        axes: int,
        capacity: int,
        library: ctypes.CDLL,
        captures: bool,
    ) -> None:
        self._device, self._embedding, self._parts = device, embedding, parts
        self._library, self._captures = library, captures
        self._token_ids = device.zeros((1, 1), np.dtype(np.int64))
        self._position_ids = device.zeros((axes, 1, 1), np.dtype(np.int64))
        self._past_length = device.zeros((1,), np.dtype(np.int64))
        self._chosen = device.zeros((1,), np.dtype(np.int64))
        self._told = device.pinned((1,), np.int64)
        self._is_visual = device.zeros((1, 1), np.dtype(np.bool_))
        self._no_visual = device.zeros((1, width), np.dtype(np.float32))
        self._key_log_gain = device.zeros((1, capacity), np.dtype(np.float32))
        self._value_gain = device.zeros((1, capacity), np.dtype(np.float32))
        device.upload(np.ones((1, capacity), np.float32), self._value_gain.address)
        device.synchronize()
        self._graph: CudaGraph | None = None

    def steps(self, token: int, past_length: int, position: int) -> Iterator[int]:
        """Feed `token`, which goes into slot `past_length`, give the next token, feed that, and so on without end.

        A step whose logits are not finite gives −1. Nothing else may run in these sessions meanwhile.
        """
        self._device.upload(np.array([[token]], np.int64), self._token_ids.address)
        self._device.upload(np.full(self._position_ids.shape, position, np.int64), self._position_ids.address)
        self._device.upload(np.array([past_length], np.int64), self._past_length.address)
        self._device.synchronize()
        # A prefill in between has set the engines to other shapes, and TensorRT wants a graph captured after that.
        self.close()
        params = self._bind()
        while True:
            with self._device.timed():
                if self._graph is None:
                    self._queue(params)
                else:
                    self._device.launch(self._graph)
            self._device.download_later(self._chosen, self._told)
            self._device.synchronize()
            yield int(self._told[0])
            if self._graph is None and self._captures:
                # The first step has loaded whatever is loaded lazily, which a capture does not allow.
                try:
                    self._graph = self._device.capture(lambda: self._queue(params))
                except VaExportError:
                    self._captures = False  # an engine that cannot be captured runs step by step

    def close(self) -> None:
        """Free the graph; buffers belong to the device."""
        if self._graph is not None:
            self._device.destroy(self._graph)
            self._graph = None

    def _bind(self) -> GreedyStepParams:
        """Give all tensors their shapes and memory."""
        embedded = self._embedding.bind(
            {"input_ids": self._token_ids, "is_visual": self._is_visual, "visual_tokens": self._no_visual}
        )
        hidden_states = embedded["inputs_embeds"]
        common = {
            "position_ids": self._position_ids,
            "key_log_gain": self._key_log_gain,
            "value_gain": self._value_gain,
            "past_length": self._past_length,
        }
        for part, session, cache in self._parts:
            outputs: Mapping[str, DeviceBuffer] = session.bind({part.input_name: hidden_states, **common}, cache)
            hidden_states = outputs[part.output_name]
        return GreedyStepParams(
            logits=hidden_states.address,
            token_ids=self._token_ids.address,
            past_length=self._past_length.address,
            position_ids=self._position_ids.address,
            axes=self._position_ids.shape[0],
            chosen=self._chosen.address,
            batch=1,
            vocab=hidden_states.shape[1],
        )

    def _queue(self, params: GreedyStepParams) -> None:
        self._embedding.enqueue()
        for _, session, _ in self._parts:
            session.enqueue()
        error = self._library.va_greedy_step_launch(ctypes.byref(params), self._device.stream)
        if error:
            raise VaExportError(
                f"the greedy step was not launched (CUDA error {error})",
                where="TensorRT runtime",
                fix="check that the plugin library has code for this GPU (manifest.json: plugin)",
            )
