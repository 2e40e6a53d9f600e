"""Open a bundle and answer questions with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Never, Self

import numpy as np
import numpy.typing as npt

from va_export.bundle.manifest import Manifest, read_manifest, verify_hashes
from va_export.errors import VaExportError
from va_export.runtime import arguments, values
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.backends.backend import Backend, Float32, Int64, has_score_graph
from va_export.runtime.backends.decoder_parts import embedding_width, position_axes
from va_export.runtime.backends.table import ATTENTIONS, BACKENDS, open_backend
from va_export.runtime.generation import Encoded, Generation
from va_export.runtime.processing import PROCESSING_NAME, Media, Prepared, read_processing
from va_export.runtime.score_cache import ScoreCache
from va_export.runtime.scoring import SCORERS, Scorer, score_visual_tokens
from va_export.runtime.session import Session, Steps, follow, greedy, likeliest
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer


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
        manifest.path(PROCESSING_NAME)
        self.processing = read_processing(manifest.held.path(PROCESSING_NAME))
        self.tokenizer: Tokenizer | None = None
        if TOKENIZER_FILE in manifest.data.files:
            with manifest.held.in_place(TOKENIZER_FILE) as directory:
                self.tokenizer = load_tokenizer(directory)
        self._is_closed = False

    @property
    def default_frames(self) -> int:
        """Frames that a question takes unless asked otherwise."""
        return self.processing.frames

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
            score: `host`, the solver of this package, or `graph`, the bundle's own `score` component in the backend;
                None: the engine where TensorRT has one, else the host.
            trust_plugins: execute the bundle's own plugin library and engines, whoever made them (SECURITY.md); as
                VA_EXPORT_TRUST_PLUGINS=1.

        Raises:
            VaExportError: not a bundle, an unfinished one, damaged, of an unknown version, with code to execute that
                nothing vouches for, or the backend is not available.
        """
        directory = path if isinstance(path, Manifest) else values.absolute_path("path", path)
        values.choice("backend", backend, BACKENDS)
        if attention is not None:
            values.choice("attention", attention, ATTENTIONS)
        if score is not None:
            values.choice("score", score, SCORERS)
        if devices is not None:
            devices = values.devices("devices", devices)
        cache = None if score_cache is None else ScoreCache(values.absolute_path("score_cache", score_cache))
        check_hashes = values.flag("check_hashes", check_hashes)
        trust_plugins = values.flag("trust_plugins", trust_plugins)
        manifest = directory if isinstance(directory, Manifest) else read_manifest(directory)
        if attention not in (None, manifest.data.attention) and backend != "onnxruntime":
            raise VaExportError(
                f"the bundle has {manifest.data.attention} attention, and {backend} runs no other form of it",
                where="attention",
                fix="leave attention out, or export the bundle with the other --attention",
            )
        if score == "graph" and not has_score_graph(manifest, backend):
            raise VaExportError(
                f"this bundle has no graph of the score for {backend}",
                where=manifest.directory,
                fix="score on the host, or export the bundle with the component score",
            )
        if check_hashes:
            verify_hashes(manifest)
        opened = open_backend(backend, manifest, attention, devices, trust_plugins)
        return cls(manifest, opened, attention, cache, score)

    def close(self) -> None:
        """Free the backend; a closed bundle answers no more."""
        self._is_closed = True
        self.backend.close()

    def __reduce__(self) -> Never:
        raise VaExportError(
            "an open bundle cannot be pickled or copied: it holds sessions of this process",
            where="Bundle",
            fix="open it again where it is needed, from its directory",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prompt(self, question: str, n_frames: int = 0, *, frames: Media | None = None) -> Int64:
        """Ids (1, S) of a question.

        Args:
            n_frames: frames that it is about; 0: a question without a video. Where frames keep their sizes, their
                number does not tell how many tokens they become: one placeholder stands for all of them, which
                `generate` takes.
            frames: what it is about, instead of a number; as for `prepare`.

        Raises:
            VaExportError: the bundle has no tokenizer, a question that is no text, or more frames than it takes.
        """
        question = values.text("question", question)
        n_frames = values.whole_number("n_frames", n_frames, least=0)
        arguments.frame_count(n_frames, self.limits.max_frames)
        return self.processing.input_ids(question, n_frames if frames is None else frames, self._tokenizer())

    def prepare(self, media: Media, question: str) -> Prepared:
        """A question about what was read, as the components take it.

        Args:
            media: frames of one video ([H, W, 3] uint8 each, RGB); or `Video`s and `Image`s of
                `va_export.runtime.processing`, in the order in which they come in the prompt.

        Raises:
            VaExportError: the bundle has no tokenizer, or frames of another kind.
        """
        return self.processing.prepare(media, values.text("question", question), self._tokenizer())

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
        grid_thw: npt.ArrayLike | None = None,
        seconds_per_grid: npt.ArrayLike | None = None,
    ) -> Generation:
        """Answer greedily: the short way to `answer`, from arrays.

        Args:
            pixel_values: float32, normalised: (frames, 3, S, S), or patches (P, width) where frames keep their sizes;
                None for a text-only prompt.
            input_ids: (S,) or (1, S); the image placeholders take the visual tokens in order, and a single one stands
                for all of a video's or an image's.
            max_new_tokens: tokens to generate at the most; fewer when a stop id comes up.
            anchors: False leaves VideoAnchor out.
            alpha_k, alpha_v: gains; None: those of the manifest.
            key_log_gain, value_gain: (S,) gains of every position of the whole prompt, instead of the scored ones.
            return_logits: keep the logits of every step.
            forced_tokens: (T,) feed these instead of the greedy choice, for comparisons; stop ids then do not stop.
            ignore_stop: generate `max_new_tokens` whatever comes up.
            on_token: called with each token as it is chosen.
            grid_thw: with patches, (n, 3): steps of time, rows and columns of patches of each video and image, in the
                order of the prompt.
            seconds_per_grid: with patches, seconds between the steps of each video; None: the bundle's own.

        Raises:
            VaExportError: values of a wrong type, shapes that do not fit each other, or a prompt beyond the bundle's
                limits; `where` names the argument.
        """
        anchors, ignore_stop = values.flag("anchors", anchors), values.flag("ignore_stop", ignore_stop)
        ids = arguments.prompt_ids(input_ids, self._vocab_size, self.processing.marker)
        arrays = {"pixel_values": pixel_values, "grid_thw": grid_thw, "seconds_per_grid": seconds_per_grid}
        given = {name: array for name, array in arrays.items() if array is not None}
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
        if self._is_closed:
            raise VaExportError("the bundle is closed", where="generate", fix="open it again")
        max_new_tokens = values.whole_number("max_new_tokens", max_new_tokens, least=1)
        ignore_stop = values.flag("ignore_stop", ignore_stop)
        return_logits = values.flag("return_logits", return_logits)
        if on_token is not None and not callable(on_token):
            raise VaExportError("on_token cannot be called", where="on_token", fix="give a function of one token")
        forced = None
        if forced_tokens is not None:
            forced = arguments.one_row("forced_tokens", forced_tokens, self._vocab_size)
        n_new = max_new_tokens if forced is None else forced.shape[1]
        self._check_prompt(prepared, n_new)
        stops = () if ignore_stop else self.processing.stop_token_ids
        on_row = None if on_token is None else lambda _, token: on_token(token)
        clock = StageClock(self.backend)
        with self._unchanged(), clock("total"):
            encoded = self._encode(prepared, anchoring or Anchoring(), clock)
            session = self._session(1, prepared.length + n_new)
            with clock("prefill"):
                logits = self._prefill(session, 0, encoded, clock)
            with clock("decode"):
                if self.backend.has_greedy_loop and not return_logits and forced is None:
                    first = int(likeliest(logits)[0])
                    loop = self.backend.greedy_steps(first, prepared.length, prepared.next_position, session.cache)
                    steps = Steps([follow(first, loop, n_new, stops, on_row)])
                else:
                    step = self._timed_step(session, clock)
                    steps = greedy(
                        logits, step, n_new, stops=stops, forced=forced, on_token=on_row, keep_logits=return_logits
                    )
        return encoded.generation(steps, 0, clock, with_logits=return_logits)

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
        max_new_tokens = values.whole_number("max_new_tokens", max_new_tokens, least=1)
        if self._is_closed:
            raise VaExportError("the bundle is closed", where="answer_batch", fix="open it again")
        for prepared in prompts:
            self._check_prompt(prepared, max_new_tokens)
        stops = () if ignore_stop else self.processing.stop_token_ids
        clock = StageClock(self.backend)
        with self._unchanged(), clock("total"):
            encoded = [self._encode(prepared, anchoring or Anchoring(), clock) for prepared in prompts]
            session = self._session(len(prompts), max(prepared.length for prepared in prompts) + max_new_tokens)
            with clock("prefill"):
                rows = [self._prefill(session, row, one, clock) for row, one in enumerate(encoded)]
            with clock("decode"):
                step = self._timed_step(session, clock)
                logits = np.concatenate(rows)
                steps = greedy(logits, step, max_new_tokens, stops=stops, keep_logits=return_logits)
        return [one.generation(steps, row, clock, with_logits=return_logits) for row, one in enumerate(encoded)]

    @property
    def _vocab_size(self) -> int:
        return self.manifest.data.model.text.vocab_size

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Around an answer: what was computed while a file was edited may be of both contents."""
        self.manifest.held.check_open()
        yield
        self.manifest.held.check_open()

    def _session(self, batch: int, needed: int) -> Session:
        width, axes = embedding_width(self.manifest), position_axes(self.manifest)
        limit, whole_from = self.limits.max_kv_cache_capacity, self.manifest.data.model.text.whole_from
        return Session.start(self.backend, width, axes, batch, needed, limit, whole_from)

    def _prefill(self, session: Session, row: int, encoded: Encoded, clock: StageClock) -> Float32:
        def add_parts() -> None:
            clock.add_parts("prefill", self.backend.part_milliseconds)

        return session.prefill(row, encoded.prepared, encoded.visual, encoded.gains, add_parts)

    def _timed_step(self, session: Session, clock: StageClock) -> Callable[[Int64], Float32]:
        def step(tokens: Int64) -> Float32:
            logits = session.step(tokens)
            clock.add_parts("decode", self.backend.part_milliseconds)
            return logits

        return step

    def _check_prompt(self, prepared: Prepared, n_new: int) -> None:
        arguments.one_row("input_ids", prepared.input_ids, self._vocab_size)
        length = prepared.length
        whole_from = self.manifest.data.model.text.whole_from
        if length > self.limits.max_input_len and whole_from is not None and prepared.position_ids.max() >= whole_from:
            raise VaExportError(
                f"the prompt has {length} tokens, which this model must be given at once; this bundle takes"
                f" {self.limits.max_input_len}",
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

    def _encode(self, prepared: Prepared, anchoring: Anchoring, clock: StageClock) -> Encoded:
        """Visual tokens, score and gains of a prompt."""
        visual = scored = None
        if prepared.vision_inputs:
            with clock("vision"):
                visual = self._visual_tokens(prepared)
        if anchoring.needs_score and visual is not None:
            with clock("score"):
                grapher = self.backend if self.scorer == "graph" else None
                tokens = visual[prepared.scored_rows, : self.manifest.data.model.text.hidden_size]
                scored = score_visual_tokens(tokens, self.score_settings, cache=self.score_cache, backend=grapher)
        return Encoded(prepared, visual, scored, anchoring.gains(prepared, scored, self.gains))

    def _visual_tokens(self, prepared: Prepared) -> Float32:
        """One row for each placeholder, (N, hidden_size); features for the decoder's first layers stand behind them."""
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


def default_scorer(manifest: Manifest, backend: str) -> Scorer:
    """The engine on a GPU; on a CPU the host's solver, which is compiled for it."""
    on_gpu = backend in ("tensorrt", "tensorrt-rtx")
    return "graph" if on_gpu and has_score_graph(manifest, backend) else "host"
