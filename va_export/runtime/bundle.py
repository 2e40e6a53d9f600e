"""Open a bundle and answer questions with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from va_export.bundle.manifest import Manifest, read_manifest, verify_hashes
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.backends.backend import Backend, Float32, Int64, has_score_graph
from va_export.runtime.backends.decoder_parts import position_axes
from va_export.runtime.backends.table import open_backend
from va_export.runtime.processing import PROCESSING_NAME, Prepared, read_processing
from va_export.runtime.processing.fixed_frames import Frames
from va_export.runtime.score_cache import ScoreCache
from va_export.runtime.scoring import SCORERS, Scored, Scorer, score_visual_tokens
from va_export.runtime.session import Session, Steps, follow, greedy, likeliest
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Generation:
    """One answer and what led to it.

    Attributes:
        tokens: (T,) the generated ids; the last is a stop id if one came up.
        logits: (T, vocab) float32, row t is what token t was chosen from, so prefill's last position comes first; None
            unless asked for.
        visual_tokens: (N, hidden_size) as they entered the decoder; None without frames.
        sharing_score: (N,) in [0, 1] of the visual tokens that are scored; None without frames or with anchors off.
        labels: (N,) subspace of each of them, with the score.
        timings: milliseconds by stage: vision, score, prefill, decode (all steps), total; where the decoder is in
            shards also what each of them had of prefill and decode, as `prefill/decoder_0`.
        gpu_timings: the same by the GPU's own clock; empty without one.
    """

    tokens: Int64
    logits: Float32 | None
    visual_tokens: Float32 | None
    sharing_score: Float32 | None
    labels: npt.NDArray[np.int64] | None
    timings: dict[str, float] = field(default_factory=dict)
    gpu_timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Encoded:
    """A prompt with its visual tokens, their score and its gains."""

    prepared: Prepared
    visual: Float32 | None
    scored: Scored | None
    gains: tuple[Float32, Float32]


class Bundle:
    """A bundle with its components opened on one backend. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        attention: str | None = None,
        score_cache: ScoreCache | None = None,
        score: str | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.attention: str = attention or manifest.data.attention
        self.limits = manifest.data.limits
        self.score_cache = score_cache
        self.scorer: str = score or default_scorer(manifest, backend.name)
        self.gains = manifest.data.gains
        self.score_settings = manifest.data.score
        self.processing = read_processing(manifest.path(PROCESSING_NAME))
        self.tokenizer: Tokenizer | None = load_tokenizer(manifest.directory)

    @property
    def default_frames(self) -> int:
        """Frames that a question takes unless asked otherwise."""
        return self.processing.frames

    @classmethod
    def open(
        cls,
        path: str | Path,
        backend: str = "onnxruntime",
        *,
        attention: str | None = None,
        check_hashes: bool = False,
        score_cache: str | Path | None = None,
        devices: Sequence[int] | None = None,
        score: str | None = None,
    ) -> Self:
        """Open a bundle directory.

        Args:
            backend: `onnxruntime`, `tensorrt`, `tensorrt-rtx` or `torch`.
            attention: `plugin` or `native` form of the decoder; None: the form that the bundle was exported with.
            check_hashes: also compare the SHA-256 of every file; sizes are always compared.
            score_cache: a directory in which scores are kept, so that further questions about a video need not score
                it again; None keeps none.
            devices: GPUs that the decoder's shards are spread over, in order; the other components go to the first.
                None: one GPU, or the CPU.
            score: `host`, the solver of this package, or `graph`, the bundle's own `score` component in the backend;
                None: the engine where TensorRT has one, else the host.

        Raises:
            VaExportError: not a bundle, an unfinished one, damaged, of an unknown version, or the backend is not
                available.
        """
        if score is not None and score not in SCORERS:
            raise VaExportError(f"unknown scorer {score!r}", where="score", fix=f"use one of: {', '.join(SCORERS)}")
        manifest = read_manifest(Path(path))
        if score == "graph" and not has_score_graph(manifest, backend):
            raise VaExportError(
                f"this bundle has no graph of the score for {backend}",
                where=manifest.directory,
                fix="score on the host, or export the bundle with the component score",
            )
        if check_hashes:
            verify_hashes(manifest)
        cache = None if score_cache is None else ScoreCache(Path(score_cache))
        return cls(manifest, open_backend(backend, manifest, attention, devices), attention, cache, score)

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prompt(self, question: str, n_frames: int) -> Int64:
        """Ids (1, S) of a question about `n_frames` frames.

        Raises:
            VaExportError: the bundle has no tokenizer.
        """
        return self.processing.input_ids(question, n_frames, self._tokenizer())

    def prepare(self, frames: Frames, question: str) -> Prepared:
        """A question about frames that were read ([H, W, 3] uint8 each, RGB), as the components take it.

        Raises:
            VaExportError: the bundle has no tokenizer, or frames of another kind.
        """
        return self.processing.prepare(frames, question, self._tokenizer())

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise VaExportError(
                "this bundle has no tokenizer: its checkpoint came without tokenizer files",
                where=self.manifest.directory,
                fix="give token ids (input_ids), or export from a checkpoint with its tokenizer",
            )
        return self.tokenizer

    def generate(
        self,
        pixel_values: npt.ArrayLike | None = None,
        input_ids: npt.ArrayLike | None = None,
        max_new_tokens: int = 32,
        anchors: bool = True,
        alpha_k: float | None = None,
        alpha_v: float | None = None,
        key_log_gain: npt.ArrayLike | None = None,
        value_gain: npt.ArrayLike | None = None,
        return_logits: bool = False,
        forced_tokens: npt.ArrayLike | None = None,
        ignore_stop: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Answer greedily: the short way to `answer`, from arrays.

        Args:
            pixel_values: (frames, 3, S, S) float32, normalised; None for a text-only prompt.
            input_ids: (S,) or (1, S); the image placeholders take the visual tokens in order, and a single one stands
                for all of them.
            max_new_tokens: tokens to generate at the most; fewer when a stop id comes up.
            anchors: False leaves VideoAnchor out.
            alpha_k, alpha_v: gains; None: those of the manifest.
            key_log_gain, value_gain: (S,) gains of every position of the whole prompt, instead of the scored ones.
            return_logits: keep the logits of every step.
            forced_tokens: (T,) feed these instead of the greedy choice, for comparisons; stop ids then do not stop.
            ignore_stop: generate `max_new_tokens` whatever comes up.
            on_token: called with each token as it is chosen.

        Raises:
            VaExportError: shapes that do not fit each other, or a prompt beyond the bundle's limits.
        """
        ids = arguments.prompt_ids(input_ids, self._vocab_size)
        given = {} if pixel_values is None else {"pixel_values": pixel_values}
        return self.answer(
            self.processing.prepare_ids(ids, given, self.limits.max_frames),
            max_new_tokens,
            Anchoring(anchors, alpha_k, alpha_v, key_log_gain, value_gain),
            return_logits=return_logits,
            forced_tokens=forced_tokens,
            ignore_stop=ignore_stop,
            on_token=on_token,
        )

    def answer(
        self,
        prepared: Prepared,
        max_new_tokens: int = 32,
        anchoring: Anchoring | None = None,
        *,
        return_logits: bool = False,
        forced_tokens: npt.ArrayLike | None = None,
        ignore_stop: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Answer a prepared prompt greedily; see `generate` for the arguments and errors."""
        forced = None
        if forced_tokens is not None:
            forced = arguments.token_ids("forced_tokens", forced_tokens, self._vocab_size).reshape(1, -1)
        n_new = max_new_tokens if forced is None else forced.shape[1]
        self._check_length(prepared, n_new)
        stops = () if ignore_stop else self.processing.stop_token_ids
        on_row = None if on_token is None else lambda _, token: on_token(token)
        clock = StageClock(self.backend)
        with clock("total"):
            encoded = self._encode(prepared, anchoring or Anchoring(), clock)
            session = self._session(1, prepared.length + n_new)
            with clock("prefill"):
                logits = session.prefill(0, prepared, encoded.visual, encoded.gains)
                clock.add_parts("prefill", self.backend.part_milliseconds)
            with clock("decode"):
                if self.backend.has_greedy_loop and not return_logits and forced is None:
                    first = int(likeliest(logits)[0])
                    loop = self.backend.greedy_steps(first, prepared.length, prepared.next_position, session.cache)
                    steps = Steps([follow(first, loop, n_new, stops, on_row)])
                else:
                    step = self._timed_step(session, clock)
                    steps = greedy(logits, step, n_new, stops=stops, forced=forced, on_token=on_row)
        return _generation(encoded, steps, 0, clock, with_logits=return_logits)

    def answer_batch(
        self,
        prompts: Sequence[Prepared],
        max_new_tokens: int = 32,
        anchoring: Anchoring | None = None,
        *,
        return_logits: bool = False,
        ignore_stop: bool = False,
    ) -> list[Generation]:
        """Answer several prompts at once, of any lengths: each is prefilled by itself, and all decode together, a row
        of the KV cache each. The answers are those of `answer`; timings are of the whole batch.

        Raises:
            VaExportError: no prompt, more than the bundle's max_batch_size, or one beyond its limits.
        """
        if not 1 <= len(prompts) <= self.limits.max_batch_size:
            raise VaExportError(
                f"{len(prompts)} prompts were given; this bundle takes 1 to {self.limits.max_batch_size} at once",
                where="answer_batch",
                fix="give fewer, or export with a larger --max-batch-size",
            )
        for prepared in prompts:
            self._check_length(prepared, max_new_tokens)
        stops = () if ignore_stop else self.processing.stop_token_ids
        clock = StageClock(self.backend)
        with clock("total"):
            encoded = [self._encode(prepared, anchoring or Anchoring(), clock) for prepared in prompts]
            session = self._session(len(prompts), max(prepared.length for prepared in prompts) + max_new_tokens)
            with clock("prefill"):
                rows = [session.prefill(row, one.prepared, one.visual, one.gains) for row, one in enumerate(encoded)]
            with clock("decode"):
                step = self._timed_step(session, clock)
                steps = greedy(np.concatenate(rows), step, max_new_tokens, stops=stops)
        return [_generation(one, steps, row, clock, with_logits=return_logits) for row, one in enumerate(encoded)]

    @property
    def _vocab_size(self) -> int:
        return self.manifest.data.model.text.vocab_size

    def _session(self, batch: int, needed: int) -> Session:
        hidden_size, axes = self.manifest.data.model.text.hidden_size, position_axes(self.manifest)
        return Session.start(self.backend, hidden_size, axes, batch, needed, self.limits.max_kv_cache_capacity)

    def _timed_step(self, session: Session, clock: StageClock) -> Callable[[Int64], Float32]:
        def step(tokens: Int64) -> Float32:
            logits = session.step(tokens)
            clock.add_parts("decode", self.backend.part_milliseconds)
            return logits

        return step

    def _check_length(self, prepared: Prepared, n_new: int) -> None:
        length = prepared.length
        if n_new < 1:
            raise VaExportError(f"max_new_tokens must be at least 1, not {n_new}", where="generate")
        if length > self.limits.max_input_len:
            raise VaExportError(
                f"the prompt has {length} tokens; this bundle takes {self.limits.max_input_len}",
                where="generate",
                fix="use fewer frames or a shorter question, or export with a larger --max-input-len",
            )
        if length + n_new > self.limits.max_kv_cache_capacity:
            raise VaExportError(
                f"{length} prompt tokens and {n_new} new ones do not fit the KV cache of"
                f" {self.limits.max_kv_cache_capacity}",
                where="generate",
                fix="lower max_new_tokens, or export with a larger --max-kv-cache-capacity",
            )

    def _encode(self, prepared: Prepared, anchoring: Anchoring, clock: StageClock) -> _Encoded:
        """Visual tokens, score and gains of a prompt."""
        visual = scored = None
        if prepared.vision_inputs:
            with clock("vision"):
                visual = self._visual_tokens(prepared)
        if anchoring.needs_score and visual is not None:
            with clock("score"):
                grapher = self.backend if self.scorer == "graph" else None
                tokens = visual[prepared.scored_rows]
                scored = score_visual_tokens(tokens, self.score_settings, cache=self.score_cache, backend=grapher)
        return _Encoded(prepared, visual, scored, anchoring.gains(prepared, scored, self.gains))

    def _visual_tokens(self, prepared: Prepared) -> Float32:
        """(N, hidden_size), one for each placeholder."""
        arguments.check_ranges(self.manifest.component("vision"), prepared.vision_inputs)
        visual = self.backend.run("vision", prepared.vision_inputs)["visual_tokens"]
        expected = int(prepared.is_visual.sum())
        if len(visual) != expected:
            raise VaExportError(
                f"the vision component gave {len(visual)} visual tokens, the prompt has {expected} placeholders",
                where=self.manifest.directory,
                fix="processing.json and the graphs do not belong together: copy or export the bundle again",
            )
        return arguments.finite_tokens(visual, self.manifest.data.precision)


def _generation(encoded: _Encoded, steps: Steps, row: int, clock: StageClock, *, with_logits: bool) -> Generation:
    tokens, scored = steps.tokens[row], encoded.scored
    return Generation(
        tokens=np.array(tokens, np.int64),
        logits=np.stack([logits[row] for logits in steps.logits[: len(tokens)]]) if with_logits else None,
        visual_tokens=encoded.visual,
        sharing_score=None if scored is None else scored.sharing_score,
        labels=None if scored is None else scored.labels,
        timings=clock.milliseconds,
        gpu_timings=clock.gpu_milliseconds,
    )


def default_scorer(manifest: Manifest, backend: str) -> Scorer:
    """The engine on a GPU; on a CPU the host's solver, which is compiled for it."""
    on_gpu = backend in ("tensorrt", "tensorrt-rtx")
    return "graph" if on_gpu and has_score_graph(manifest, backend) else "host"
