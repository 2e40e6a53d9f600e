"""A conversation in the making: a KV cache, how far its rows are filled, and the greedy loop over whatever steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from va_export.errors import VaExportError
from va_export.runtime.backends.backend import Backend, Float32, Int64
from va_export.runtime.processing import Prepared


@dataclass
class Session:
    """The state of one row (or several side by side) of a bundle's decoder. `start` makes one.

    Attributes:
        width: values of a visual token.
        cache: the backend's, of `capacity` slots a row.
        past_length: (B,) int64, slots that are written.
        next_position: (B,) int64, the position that the next token has on every axis: a slot and a position are two
            things.
        axes: positions of a token.
    """

    backend: Backend
    width: int
    capacity: int
    cache: Any
    past_length: Int64
    next_position: Int64
    axes: int

    @classmethod
    def start(cls, backend: Backend, width: int, axes: int, batch: int, needed: int, limit: int) -> Session:
        """An empty session of `batch` rows that are to hold `needed` tokens each, in at most `limit` slots."""
        capacity = backend.cache_capacity(needed, limit)
        nothing = np.zeros(batch, np.int64)
        cache = backend.new_cache(batch, capacity)
        return cls(backend, width, capacity, cache, nothing, nothing.copy(), axes)

    def prefill(self, row: int, prepared: Prepared, visual: Float32 | None, gains: tuple[Float32, Float32]) -> Float32:
        """Put a prompt into an empty row; (1, vocab) logits of its last position.

        Args:
            visual: (N, D) visual tokens; None without frames.
            gains: key_log_gain and value_gain of the prompt, (S,) each.
        """
        length = prepared.length
        key_log_gain, value_gain = self._plain(1)
        if length > 1:  # one query is plain attention (arXiv 2509.25151: prefill only)
            key_log_gain[0, :length], value_gain[0, :length] = gains
        embeds = self._embed(prepared.input_ids, prepared.is_visual, visual)  # (1, S, D)
        cache = self.cache if len(self.past_length) == 1 else self.backend.cache_row(self.cache, row)
        logits = self.backend.decode(
            embeds, prepared.position_ids, key_log_gain, value_gain, np.zeros(1, np.int64), cache
        )
        self.past_length[row], self.next_position[row] = length, prepared.next_position
        return logits

    def step(self, tokens: Int64) -> Float32:
        """Feed one token a row, (B,); (B, vocab) logits of what follows."""
        batch = len(tokens)
        embeds = self._embed(tokens[:, None], np.zeros((batch, 1), np.bool_), None)  # (B, 1, D)
        position_ids = np.tile(self.next_position[:, None], (self.axes, 1, 1))  # (axes, B, 1)
        logits = self.backend.decode(embeds, position_ids, *self._plain(batch), self.past_length, self.cache)
        self.past_length, self.next_position = self.past_length + 1, self.next_position + 1
        return logits

    def _embed(self, input_ids: Int64, is_visual: np.ndarray, visual: Float32 | None) -> Float32:
        # Where there are no visual tokens any one row stands for them, which is then not read.
        tokens = np.zeros((1, self.width), np.float32) if visual is None else visual
        inputs = {"input_ids": input_ids, "is_visual": is_visual, "visual_tokens": tokens}
        return self.backend.run("embedding", inputs)["inputs_embeds"]

    def _plain(self, batch: int) -> tuple[Float32, Float32]:
        """Gains that change nothing, (B, capacity) each."""
        shape = (batch, self.capacity)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)


@dataclass
class Steps:
    """What a greedy loop gave.

    Attributes:
        tokens: by row; the last of a row is a stop id if one came up.
        logits: (B, vocab) of every step, the prompts' last positions first, if they were to be kept.
    """

    tokens: list[list[int]]
    logits: list[Float32] = field(default_factory=list)


def greedy(
    logits: Float32,
    step: Callable[[Int64], Float32],
    n_new: int,
    *,
    stops: Sequence[int] = (),
    forced: Int64 | None = None,
    on_token: Callable[[int, int], None] | None = None,
    keep_logits: bool = True,
) -> Steps:
    """Choose the likeliest token of every row and feed it, until each row has `n_new` or met a stop.

    A row that has ended is fed on with what it chooses, which nobody sees, as long as others go on.

    Args:
        logits: (B, vocab) of the prompts' last positions.
        step: feeds (B,) tokens and gives (B, vocab) logits: a session's, a reference model's.
        forced: (B, T ≥ n_new) tokens to feed instead of the likeliest, for comparisons; stops then do not stop.
        on_token: called with (row, token) as each is chosen.
        keep_logits: False for long answers: at 92 553 words a thousand tokens of eight rows are 3 GB.

    Raises:
        VaExportError: logits that are not finite, where tokens are chosen from them.
    """
    batch = len(logits)
    done = Steps([[] for _ in range(batch)])
    running = [True] * batch
    for number in range(n_new):
        if keep_logits:
            done.logits.append(logits)
        if forced is None:
            _check_finite(logits[running])  # rows that have ended may do as they like
            chosen = logits.argmax(axis=-1).astype(np.int64)
        else:
            chosen = forced[:, number]
        for row in range(batch):
            if not running[row]:
                continue
            token = int(chosen[row])
            done.tokens[row].append(token)
            if on_token is not None:
                on_token(row, token)
            running[row] = forced is not None or token not in stops
        if number + 1 == n_new or not any(running):
            return done
        logits = step(chosen)
    return done


def follow(
    first: int, steps: Iterator[int], n_new: int, stops: Sequence[int], on_token: Callable[[int, int], None] | None
) -> list[int]:
    """`greedy` for one row where the device chooses: `steps` are the tokens after `first`, −1 where logits are not
    finite."""
    tokens: list[int] = []
    token = first
    while True:
        tokens.append(token)
        if on_token is not None:
            on_token(0, token)
        if len(tokens) == n_new or token in stops:
            return tokens
        token = next(steps)
        if token < 0:
            raise not_finite()


def likeliest(logits: Float32) -> Int64:
    """The greedy choice of every row, (B,). NaN would win every argmax, and the answer would be noise without a word.

    Raises:
        VaExportError: logits that are not finite.
    """
    _check_finite(logits)
    chosen: Int64 = logits.argmax(axis=-1).astype(np.int64)
    return chosen


def _check_finite(logits: Float32) -> None:
    if not np.isfinite(logits).all():
        raise not_finite()


def not_finite() -> VaExportError:
    """The error for logits that are NaN or infinite."""
    return VaExportError(
        "the decoder's logits are not finite: its activations do not fit the precision",
        where="decoder",
        fix="export with --precision bf16 or --precision fp32",
    )
