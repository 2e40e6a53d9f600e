"""A conversation in the making: a KV cache, how far its rows are filled, and the greedy loop over whatever steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from va_export.runtime.backends.backend import Backend, Float32, Int64, Slots
from va_export.runtime.processing import Prepared
from va_export.runtime.token_choice import not_finite


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
        whole_from: prompts that reach this position are prefilled at once (`TextSizes.whole_from`).
    """

    backend: Backend
    width: int
    capacity: int
    cache: Any
    past_length: Int64
    next_position: Int64
    axes: int
    whole_from: int | None = None

    @classmethod
    def start(
        cls,
        backend: Backend,
        width: int,
        axes: int,
        batch: int,
        needed: int,
        limit: int,
        whole_from: int | None = None,
    ) -> Session:
        """An empty session of `batch` rows that are to hold `needed` tokens each, in at most `limit` slots."""
        capacity = backend.cache_capacity(needed, limit)
        nothing = np.zeros(batch, np.int64)
        cache = backend.new_cache(batch, capacity)
        return cls(backend, width, capacity, cache, nothing, nothing.copy(), axes, whole_from)

    def prefill(
        self,
        row: int,
        prepared: Prepared,
        visual: Float32 | None,
        gains: tuple[Float32, Float32],
        on_chunk: Callable[[], None] | None = None,
    ) -> Float32:
        """Put a prompt behind what a row holds, chunk by chunk; (1, vocab) logits of its last position.

        Where chunks end changes nothing but rounding: all are given the gains of all slots, and none is one token long
        unless the prompt is, for there a PyTorch decoder takes one query for a step, which is plain.

        Args:
            prepared: S tokens, with the positions that they have behind what is there.
            visual: (N, D) visual tokens of these; None without frames.
            gains: key_log_gain and value_gain of all slots up to the prompt's last one, (past + S,) each.
            on_chunk: called after each chunk.
        """
        past, length = int(self.past_length[row]), prepared.length
        end = past + length
        key_log_gain, value_gain = self._plain(1)
        if end > 1:  # one query is plain attention (arXiv 2509.25151: prefill only)
            key_log_gain[0, :end], value_gain[0, :end] = gains
        cache = self.cache if len(self.past_length) == 1 else self.backend.cache_row(self.cache, row)
        is_whole = self.whole_from is not None and int(prepared.position_ids.max()) >= self.whole_from
        logits = np.zeros((1, 0), np.float32)
        n_visual = 0  # that earlier chunks have taken
        for chunk in chunks(length, length if is_whole else self.backend.prefill_chunk(end)):
            is_visual = prepared.is_visual[:, chunk]
            taken = slice(n_visual, n_visual + int(is_visual.sum()))
            embeds = self._embed(prepared.input_ids[:, chunk], is_visual, None if visual is None else visual[taken])
            written = np.array([past + chunk.start], np.int64)
            positions = prepared.position_ids[..., chunk]  # (axes, 1, chunk)
            logits = self.backend.decode(embeds, positions, key_log_gain, value_gain, written, cache)
            n_visual = taken.stop
            if on_chunk is not None:
                on_chunk()
        self.past_length[row], self.next_position[row] = end, prepared.next_position
        return logits

    def resume(self, parts: Sequence[Slots]) -> None:
        """Fill the first slots of the only row with what another session held there, part after part."""
        for slots in parts:
            start = int(self.past_length[0])
            self.backend.write_slots(self.cache, start, slots)
            self.past_length[0] = start + next(iter(slots.values()))[0].shape[1]

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
        tokens = np.zeros((1, self.width), np.float32) if visual is None or not len(visual) else visual
        inputs = {"input_ids": input_ids, "is_visual": is_visual, "visual_tokens": tokens}
        return self.backend.run("embedding", inputs)["inputs_embeds"]

    def _plain(self, batch: int) -> tuple[Float32, Float32]:
        """Gains that change nothing, (B, capacity) each."""
        shape = (batch, self.capacity)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)


def chunks(length: int, most: int) -> Iterator[slice]:
    """`length` positions in as few runs of at most `most` as there can be, all of them of about one length: none is of
    one position where there are more, if `most` is above 2."""
    count = -(-length // most)
    for index in range(count):
        yield slice(index * length // count, (index + 1) * length // count)


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
