"""Open a bundle and answer questions with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from va_export.anchor.gains import alphas_of_prompt, gains_from_score
from va_export.bundle.manifest import Manifest, read_manifest, verify_hashes
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.backends.backend import Backend, Bool, Float32, Int64, has_score_graph
from va_export.runtime.backends.table import open_backend
from va_export.runtime.processing.fixed_frames import Processing
from va_export.runtime.score_cache import ScoreCache
from va_export.runtime.scoring import SCORERS, Scored, Scorer, score_visual_tokens
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from va_export.settings import GainSettings, Limits, ScoreSettings


@dataclass(frozen=True)
class Generation:
    """One answer and what led to it.

    Attributes:
        tokens: (T,) the generated ids; the last is a stop id if one came up.
        logits: (T, vocab) float32, row t is what token t was chosen from, so prefill's last position comes first;
        None unless
            asked for.
        visual_tokens: (N, hidden_size) as they entered the decoder; None without frames.
        sharing_score: (N,) in [0, 1]; None without frames or with anchors off.
        labels: (N,) subspace of each visual token, with the score.
        timings: milliseconds by stage: vision, score, prefill, decode (all steps), total; where the decoder is in
            shards also what each of them had of prefill and decode, as `prefill/decoder_0`.
    """

    tokens: Int64
    logits: Float32 | None
    visual_tokens: Float32 | None
    sharing_score: Float32 | None
    labels: npt.NDArray[np.int64] | None
    timings: dict[str, float] = field(default_factory=dict)
    gpu_timings: dict[str, float] = field(default_factory=dict)


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
        self.attention: str = attention or manifest.data["attention"]
        self.limits = Limits.from_mapping(manifest.data["limits"], "manifest.json: limits")
        self.score_cache = score_cache
        self.scorer: str = score or default_scorer(manifest, backend.name)
        self.gains = GainSettings.from_mapping(manifest.data["gains"], "manifest.json: gains")
        self.score_settings = ScoreSettings.from_mapping(manifest.data["score"], "manifest.json: score")
        self.processing = Processing.from_json(manifest.text("processing.json"))
        self.tokenizer: Tokenizer | None = None
        if TOKENIZER_FILE in manifest.files:
            with manifest.held.in_place(TOKENIZER_FILE) as directory:
                self.tokenizer = load_tokenizer(directory)

    @property
    def default_frames(self) -> int:
        """Frames that a question takes unless asked otherwise."""
        settings = json.loads(self.manifest.text("generation.json"))
        return int(settings["frames"])

    @classmethod
    def open(
        cls,
        path: str | Path | Manifest,
        backend: str = "onnxruntime",
        *,
        attention: str | None = None,
        check_hashes: bool = False,
        score_cache: str | Path | None = None,
        devices: Sequence[int] | None = None,
        unfinished_too: bool = False,
        score: str | None = None,
        trust_plugins: bool = False,
    ) -> Self:
        """Open a bundle directory. What is read later is what lies there now; a file that was exchanged is refused.

        Args:
            path: a manifest opens the bundle that it was read from.
            backend: `onnxruntime`, `tensorrt`, `tensorrt-rtx` or `torch`.
            attention: `plugin` or `native` form of the decoder; None: the form that the bundle was exported with.
            check_hashes: also compare the SHA-256 of every file; sizes are always compared.
            score_cache: a directory in which scores are kept, so that further questions about a video need not score
                it again; None keeps none.
            devices: GPUs that the decoder's shards are spread over, in order; the other components go to the first.
                None: one GPU, or the CPU.
            unfinished_too: for the export that is making the bundle, to prove it.
            score: `host`, the solver of this package, or `graph`, the bundle's own `score` component in the backend;
                None: the engine where TensorRT has one, else the host.
            trust_plugins: execute the bundle's own plugin library and engines, whoever made them (SECURITY.md); as
                VA_EXPORT_TRUST_PLUGINS=1.

        Raises:
            VaExportError: not a bundle, an unfinished one, damaged, of an unknown version, with code to execute that
                nothing vouches for, or the backend is not available.
        """
        if score is not None and score not in SCORERS:
            raise VaExportError(f"unknown scorer {score!r}", where="score", fix=f"use one of: {', '.join(SCORERS)}")
        manifest = path if isinstance(path, Manifest) else read_manifest(Path(path), unfinished_too=unfinished_too)
        if score == "graph" and not has_score_graph(manifest, backend):
            raise VaExportError(
                f"this bundle has no graph of the score for {backend}",
                where=manifest.directory,
                fix="score on the host, or export the bundle with the component score",
            )
        if check_hashes:
            verify_hashes(manifest)
        cache = None if score_cache is None else ScoreCache(Path(score_cache))
        opened = open_backend(backend, manifest, attention, devices, trust_plugins)
        return cls(manifest, opened, attention, cache, score)

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
        if self.tokenizer is None:
            raise VaExportError(
                "this bundle has no tokenizer: its checkpoint came without tokenizer files",
                where=self.manifest.directory,
                fix="give token ids (input_ids), or export from a checkpoint with its tokenizer",
            )
        return self.processing.input_ids(question, n_frames, self.tokenizer)

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
        """Answer greedily.

        Args:
            pixel_values: (frames, 3, S, S) float32, normalised; None for a text-only prompt.
            input_ids: (S,) or (1, S); the image placeholders take the visual tokens in order.
            max_new_tokens: tokens to generate at the most; fewer when a stop id comes up.
            anchors: False leaves VideoAnchor out.
            alpha_k, alpha_v: gains; None: those of the manifest.
            key_log_gain, value_gain: (S,) gains of every prompt position, instead of the scored ones.
            return_logits: keep the logits of every step.
            forced_tokens: (T,) feed these instead of the greedy choice, for comparisons; stop ids then do not stop.
            ignore_stop: generate `max_new_tokens` whatever comes up.
            on_token: called with each token as it is chosen.

        Raises:
            VaExportError: shapes that do not fit each other, or a prompt beyond the bundle's limits.
        """
        vocab: int = self.manifest.data["model"]["text"]["vocab_size"]
        forced = (
            None if forced_tokens is None else arguments.token_ids("forced_tokens", forced_tokens, vocab).reshape(-1)
        )
        n_new = max_new_tokens if forced is None else len(forced)
        ids = self._checked_ids(input_ids, vocab, n_new)
        given = (alpha_k, alpha_v, key_log_gain, value_gain)
        if not anchors and any(one is not None for one in given):
            raise VaExportError("anchors=False contradicts given gains", where="generate", fix="leave one of them out")
        pixels = None
        if pixel_values is not None:
            pixels = arguments.pixels(pixel_values, self.processing.image_size, self.limits.max_frames)
        self.manifest.held.check_open()
        clock = StageClock(self.backend)
        with clock("total"):
            visual = None
            if pixels is not None:
                with clock("vision"):
                    visual = arguments.finite_tokens(self.backend.vision(pixels), self.manifest.data["precision"])
            is_visual = self._placeholders(ids, visual)
            explicit = key_log_gain is not None and value_gain is not None
            scored = None
            if anchors and visual is not None and not explicit:
                with clock("score"):
                    grapher = self.backend if self.scorer == "graph" else None
                    scored = score_visual_tokens(visual, self.score_settings, cache=self.score_cache, backend=grapher)
            gains = self._gains(ids.shape[1], is_visual, scored, (alpha_k, alpha_v), (key_log_gain, value_gain))
            stops = () if ignore_stop or forced is not None else self.processing.stop_token_ids
            chooses_here = return_logits or forced is not None
            tokens, logits = self._decode(
                ids, is_visual, visual, gains, n_new, forced, stops, on_token, clock, chooses_here
            )
        self.manifest.held.check_open()  # an edit while it ran: what was computed may be of both contents
        return Generation(
            tokens=tokens,
            logits=logits if return_logits else None,
            visual_tokens=visual,
            sharing_score=None if scored is None else scored.sharing_score,
            labels=None if scored is None else scored.labels,
            timings=clock.milliseconds,
            gpu_timings=clock.gpu_milliseconds,
        )

    def _checked_ids(self, input_ids: npt.ArrayLike | None, vocab: int, n_new: int) -> Int64:
        if input_ids is None:
            raise VaExportError("generate needs input_ids", where="generate", fix="make them with Bundle.prompt")
        ids = np.atleast_2d(arguments.token_ids("input_ids", input_ids, vocab))
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1:
            raise VaExportError(
                f"input_ids has shape {ids.shape}; generate takes one prompt, (S,) or (1, S)", where="generate"
            )
        if n_new < 1:
            raise VaExportError(f"max_new_tokens must be at least 1, not {n_new}", where="generate")
        length = ids.shape[1]
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
        return ids

    def _placeholders(self, ids: Int64, visual: Float32 | None) -> Bool:
        """Which positions take visual tokens, (1, S)."""
        token = self.processing.image_token_id
        if visual is None:
            if token is not None and (ids == token).any():
                raise VaExportError(
                    f"the prompt has {int((ids == token).sum())} image placeholders (id {token}), there are no frames",
                    where="generate",
                    fix="give pixel_values, or leave the placeholders out",
                )
            return np.zeros(ids.shape, dtype=np.bool_)
        count = len(visual)
        if token is None:
            # The checkpoint did not say which id stands for the image: it is the one that occurs once a visual token.
            values, occurrences = np.unique(ids, return_counts=True)
            candidates = values[occurrences == count]
            if len(candidates) != 1:
                raise VaExportError(
                    f"no single id occurs {count} times in the prompt, once for each visual token",
                    where="generate",
                    fix=f"put exactly {count} image placeholders into input_ids, or export with --image-token-id",
                )
            token = int(candidates[0])
        is_visual: Bool = ids == token
        if is_visual.sum() != count:
            raise VaExportError(
                f"the prompt has {int(is_visual.sum())} image placeholders (id {token}); the frames give {count} visual"
                " tokens",
                where="generate",
                fix=f"put {self.processing.tokens_per_frame} placeholders into the prompt for each frame",
            )
        return is_visual

    def _gains(
        self,
        length: int,
        is_visual: Bool,
        scored: Scored | None,
        alphas: tuple[float | None, float | None],
        overrides: tuple[npt.ArrayLike | None, npt.ArrayLike | None],
    ) -> tuple[Float32, Float32]:
        """key_log_gain and value_gain of the prompt, (S,) each."""
        log_gain, gain = np.zeros(length, np.float32), np.ones(length, np.float32)
        if scored is not None:
            given_k, given_v = alphas
            if given_k is None or given_v is None:
                alpha_k, alpha_v = alphas_of_prompt(self.gains, scored.sharing_score, length)
                given_k = alpha_k if given_k is None else given_k
                given_v = alpha_v if given_v is None else given_v
            log_gain, gain = gains_from_score(
                scored.sharing_score, is_visual[0], length, alpha_k=given_k, alpha_v=given_v
            )
        return (
            log_gain if overrides[0] is None else arguments.gain("key_log_gain", overrides[0], length),
            gain if overrides[1] is None else arguments.gain("value_gain", overrides[1], length),
        )

    def _likeliest(self, logits: Float32) -> int:
        """Greedy choice. NaN would win every argmax, and the answer would be noise without a word."""
        return self._finite(int(logits.argmax()) if np.isfinite(logits).all() else -1)

    def _finite(self, token: int) -> int:
        """The token, unless it is the −1 of logits that are not finite."""
        if token < 0:
            precision = self.manifest.data["precision"]
            raise VaExportError(
                f"the decoder's logits are not finite: its activations do not fit {precision}",
                where=self.manifest.directory,
                fix="export with --precision bf16 or --precision fp32",
            )
        return token

    def _decode(
        self,
        ids: Int64,
        is_visual: Bool,
        visual: Float32 | None,
        gains: tuple[Float32, Float32],
        n_new: int,
        forced: Int64 | None,
        stops: tuple[int, ...],
        on_token: Callable[[int], None] | None,
        clock: StageClock,
        chooses_here: bool,
    ) -> tuple[Int64, Float32]:
        """Tokens, and the logits that came to the host: all of them where tokens are chosen here, else prefill's."""
        backend, length = self.backend, ids.shape[1]
        no_visual = np.zeros((1, self.manifest.data["model"]["text"]["hidden_size"]), np.float32)
        capacity = backend.cache_capacity(length + n_new, self.limits.max_kv_cache_capacity)
        cache = backend.new_cache(1, capacity)
        plain = np.zeros((1, capacity), np.float32), np.ones((1, capacity), np.float32)
        padded = plain[0].copy(), plain[1].copy()
        if length > 1:  # one query is plain attention (arXiv 2509.25151: prefill only)
            padded[0][0, :length], padded[1][0, :length] = gains
        with clock("prefill"):
            embeds = backend.embed(ids, is_visual, no_visual if visual is None else visual)
            logits = [backend.decode(embeds, *padded, np.zeros(1, np.int64), cache)[0]]
            clock.add_parts("prefill", backend.part_milliseconds)
        tokens: list[int] = []
        is_text = np.zeros((1, 1), np.bool_)
        steps: Iterator[int] | None = None
        token = self._likeliest(logits[-1]) if forced is None else int(forced[0])
        with clock("decode"):
            while True:
                tokens.append(token)
                if on_token is not None:
                    on_token(token)
                if len(tokens) == n_new or token in stops:
                    break
                past = length + len(tokens) - 1
                if len(tokens) == 1 and backend.has_greedy_loop and not chooses_here:
                    steps = backend.greedy_steps(token, past, cache)
                if steps is not None:
                    token = self._finite(next(steps))
                    continue
                embeds = backend.embed(np.array([[token]], np.int64), is_text, no_visual)
                logits.append(backend.decode(embeds, *plain, np.array([past], np.int64), cache)[0])
                clock.add_parts("decode", backend.part_milliseconds)
                token = self._likeliest(logits[-1]) if forced is None else int(forced[len(tokens)])
        return np.array(tokens, np.int64), np.stack(logits)


def default_scorer(manifest: Manifest, backend: str) -> Scorer:
    """The engine on a GPU; on a CPU the host's solver, which is compiled for it."""
    on_gpu = backend in ("tensorrt", "tensorrt-rtx")
    return "graph" if on_gpu and has_score_graph(manifest, backend) else "host"
