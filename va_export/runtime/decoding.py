"""One answer at a time from a bundle's decoder: what of the prompt is known already, prefill, and token after token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from va_export.bundle.manifest import Manifest
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.backends.backend import Backend, Float32, Int64
from va_export.runtime.backends.decoder_parts import embedding_width, position_axes
from va_export.runtime.generation import Encoded
from va_export.runtime.prefix import Prefix, PrefixStore, prefix_key, shared_length
from va_export.runtime.processing import Prepared
from va_export.runtime.session import Session, Steps, greedy, likeliest
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import TokenChoice, not_finite
from va_export.runtime.turn import Turn


@dataclass(frozen=True)
class Wish:
    """What is wanted of an answer's tokens.

    Attributes:
        n_new: tokens at the most.
        stops: ids that end it.
        forced: (T ≥ n_new,) tokens to feed instead of those that are chosen; stops then do not stop.
        keeps_logits: whether `Row.logits` is to hold every step's.
    """

    choice: TokenChoice
    n_new: int
    stops: Sequence[int] = ()
    forced: Int64 | None = None
    keeps_logits: bool = False


@dataclass
class Row:
    """What became of one answer.

    Attributes:
        logits: (vocab,) of every step, if they were to be kept.
        reused: tokens of the prompt that needed no prefill.
        kept: the row's slots up to the answer's last token but one, if they were to be kept.
    """

    logits: list[Float32] = field(default_factory=list)
    reused: int = 0
    kept: Prefix | None = None


class Decoding:
    """A bundle's decoder, for one answer after another.

    Args:
        turn: taken for every answer.
        bundle: names the decoder and what runs it.
        store: prefixes that prompts share.
    """

    def __init__(self, manifest: Manifest, backend: Backend, turn: Turn, bundle: str, store: PrefixStore) -> None:
        self.turn = turn
        self._manifest, self._backend, self._bundle, self._store = manifest, backend, bundle, store

    def check(self, prepared: Prepared, n_new: int) -> None:
        """Hold a prompt and the length of its answer against the bundle's limits.

        Raises:
            VaExportError: too long, or ids beyond the vocabulary.
        """
        text, limits = self._manifest.data.model.text, self._manifest.data.limits
        arguments.one_row("input_ids", prepared.input_ids, text.vocab_size)
        length = prepared.length
        if length > limits.max_input_len and self._is_whole(prepared):
            raise VaExportError(
                f"the prompt has {length} tokens, which this model must be given at once; this bundle takes"
                f" {limits.max_input_len}",
                where="generate",
                fix="use fewer frames or a shorter question, or export with a larger --max-input-len",
            )
        if length + n_new > limits.max_kv_cache_capacity:
            raise VaExportError(
                f"{length} prompt tokens and {n_new} new ones do not fit the KV cache of"
                f" {limits.max_kv_cache_capacity}",
                where="generate",
                fix="lower max_new_tokens, or export with a larger --max-kv-cache-capacity",
            )

    def session(self, batch: int, needed: int) -> Session:
        """An empty session of so many rows of `needed` slots."""
        manifest = self._manifest
        width, axes = embedding_width(manifest), position_axes(manifest)
        limit, whole_from = manifest.data.limits.max_kv_cache_capacity, manifest.data.model.text.whole_from
        return Session.start(self._backend, width, axes, batch, needed, limit, whole_from)

    def prefill(self, session: Session, row: int, encoded: Encoded, clock: StageClock, start: int = 0) -> Float32:
        """Put a prompt, or what is left of it behind its first `start` tokens, into a row; (1, vocab) logits."""

        def add_parts() -> None:
            clock.add_parts("prefill", self._backend.part_milliseconds)

        visual = encoded.visual
        if visual is not None:
            visual = visual[int(encoded.prepared.is_visual[:, :start].sum()) :]
        return session.prefill(row, encoded.prepared.after(start), visual, encoded.gains, add_parts)

    def step(self, session: Session, clock: StageClock) -> Callable[[Int64], Float32]:
        """A session's step that counts what shards take."""

        def step(tokens: Int64) -> Float32:
            logits = session.step(tokens)
            clock.add_parts("decode", self._backend.part_milliseconds)
            return logits

        return step

    def together(
        self, prompts: Sequence[Encoded], n_new: int, stops: Sequence[int], clock: StageClock, *, keeps_logits: bool
    ) -> Steps:
        """The likeliest tokens of several answers, a row of one cache each; see `greedy`."""
        with self.turn, self._manifest.held.unchanged():
            session = self.session(len(prompts), max(one.prepared.length for one in prompts) + n_new)
            with clock("prefill"):
                logits = np.concatenate([self.prefill(session, row, one, clock) for row, one in enumerate(prompts)])
            with clock("decode"):
                return greedy(logits, self.step(session, clock), n_new, stops=stops, keep_logits=keeps_logits)

    def tokens(
        self,
        encoded: Encoded,
        wish: Wish,
        clock: StageClock,
        row: Row,
        *,
        seen: str | None = None,
        past: Prefix | None = None,
        keeps: bool = False,
    ) -> Generator[int]:
        """The tokens of an answer. It has its turn from the first one that is asked for until the iterator ends or is
        closed.

        Args:
            seen: names the visual tokens, so that the prompt's beginning is kept for others, and found; None: not.
            past: leading slots of this very prompt, as a conversation has them.
            keeps: whether `row.kept` is wanted.

        Raises:
            VaExportError: this thread has another answer's turn, or logits are not finite.
        """
        backend, prepared = self._backend, encoded.prepared
        with self.turn, self._manifest.held.unchanged():
            session = self.session(1, prepared.length + wish.n_new)
            key = None
            with clock("prefill"):
                if self._is_whole(prepared) or not backend.keeps_slots:
                    past = None
                elif past is None and seen is not None and self._store.keeps and (shared := shared_length(prepared)):
                    key = prefix_key(self._bundle, seen, prepared, encoded.gains, shared)
                    past = self._known(key, session, shared)
                if past is not None:
                    session.resume(past.parts)
                    row.reused, key = past.length, None
                logits = self.prefill(session, 0, encoded, clock, row.reused)
                if key is not None:
                    past = Prefix((backend.read_slots(session.cache, slice(shared)),), shared)
                    self._store.store(key, past.parts[0])
            count = 0
            try:
                # Closed before slots are read: a device's own loop may run ahead.
                with closing(self._chosen(session, prepared, logits, wish, clock, row)) as chosen:
                    for token in chosen:
                        count += 1
                        yield token
            finally:
                if keeps and count and backend.keeps_slots:
                    held = past or Prefix((), 0)
                    filled = prepared.length + count - 1  # the last token was chosen and not fed
                    own = backend.read_slots(session.cache, slice(held.length, filled))
                    row.kept = held.then(own, filled - held.length)

    def _chosen(
        self, session: Session, prepared: Prepared, logits: Float32, wish: Wish, clock: StageClock, row: Row
    ) -> Generator[int]:
        backend, choice = self._backend, wish.choice
        if backend.has_greedy_loop and choice.is_plain and not wish.keeps_logits and wish.forced is None:
            token = int(likeliest(logits)[0])
            loop = backend.greedy_steps(token, prepared.length, prepared.next_position, session.cache)
            for number in range(wish.n_new):
                yield token
                if number + 1 == wish.n_new or token in wish.stops:
                    return
                with clock("decode"):
                    token = next(loop)
                if token < 0:
                    raise not_finite()
        step = self.step(session, clock)
        for number in range(wish.n_new):
            if wish.keeps_logits:
                row.logits.append(logits[0])
            token = choice(logits[0]) if wish.forced is None else int(wish.forced[number])
            yield token
            if number + 1 == wish.n_new or (wish.forced is None and token in wish.stops):
                return
            with clock("decode"):
                logits = step(np.array([token], np.int64))

    def _is_whole(self, prepared: Prepared) -> bool:
        """Whether the prompt must be prefilled in one call."""
        whole_from = self._manifest.data.model.text.whole_from
        return whole_from is not None and int(prepared.position_ids.max()) >= whole_from

    def _known(self, key: str, session: Session, length: int) -> Prefix | None:
        slots = self._store.load(key, self._backend.read_slots(session.cache, slice(0, 0)), length)
        return None if slots is None else Prefix((slots,), length)
