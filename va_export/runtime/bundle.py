"""Open a bundle and answer questions with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Never, Self, cast

import numpy.typing as npt

from va_export.anchor.iterations_left import OnProgress
from va_export.bundle.manifest import Manifest, read_manifest, verify_hashes
from va_export.documents import encode
from va_export.errors import VaExportError
from va_export.runtime import arguments, values
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.array_cache import ArrayCache
from va_export.runtime.backends.backend import Backend, Int64, has_score_graph
from va_export.runtime.backends.table import ATTENTIONS, BACKENDS, open_backend
from va_export.runtime.clip import Clip
from va_export.runtime.decoding import Decoding, Row, Wish
from va_export.runtime.encoding import Encoder, choose_scorer
from va_export.runtime.generation import Encoded, Generation
from va_export.runtime.prefix import PrefixStore
from va_export.runtime.processing import PROCESSING_NAME, Media, Prepared, read_processing
from va_export.runtime.score_cache import ScoreCache
from va_export.runtime.scoring import SCORERS, Scorer
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import GREEDY, TokenChoice
from va_export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from va_export.runtime.turn import Turn
from va_export.settings import ScoreSettings

CLIP_MEMORY = 1 << 30
"""Bytes of keys and values of watched clips that an open bundle keeps, unless asked otherwise."""


class Bundle:
    """A bundle with its components opened on one backend. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        attention: str | None = None,
        score_cache: ScoreCache | None = None,
        score: Scorer | None = None,
        clip_memory: int = CLIP_MEMORY,
        clip_cache: Path | None = None,
        on_score: OnProgress | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.attention: str = attention or manifest.data.attention
        self.limits = manifest.data.limits
        self.scorer: Scorer = choose_scorer(manifest, backend, score)
        self.gains = manifest.data.gains
        manifest.path(PROCESSING_NAME)
        self.processing = read_processing(manifest.held.path(PROCESSING_NAME))
        self.tokenizer: Tokenizer | None = None
        if TOKENIZER_FILE in manifest.data.files:
            with manifest.held.in_place(TOKENIZER_FILE) as directory:
                self.tokenizer = load_tokenizer(directory)
        name = hashlib.sha256(encode(manifest.data) + f"{backend.name} {self.attention}".encode()).hexdigest()
        turn, seen = Turn(), None if clip_cache is None else ArrayCache(clip_cache, "seen", max_bytes=clip_memory)
        self.encoder = Encoder(
            manifest, backend, self.scorer, manifest.data.score, score_cache, turn, name, seen, on_score
        )
        self.decoding = Decoding(manifest, backend, turn, name, PrefixStore(clip_memory, clip_cache))
        self._is_closed = False

    @property
    def score_settings(self) -> ScoreSettings:
        """How visual tokens are scored; may be set."""
        return self.encoder.settings

    @score_settings.setter
    def score_settings(self, settings: ScoreSettings) -> None:
        self.encoder.settings = settings

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
        clip_memory: int = CLIP_MEMORY,
        clip_cache: str | Path | None = None,
        on_score: OnProgress | None = None,
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
                None: the engine where TensorRT has one and its kernels passed the self-test here, else the host.
            trust_plugins: execute the bundle's own plugin library and engines, whoever made them (SECURITY.md); as
                VA_EXPORT_TRUST_PLUGINS=1.
            clip_memory: bytes of keys and values of watched clips that are kept; the least recently used go first.
            clip_cache: a directory in which what was seen of clips is kept besides, for other processes: visual tokens
                and scores, as many bytes as `clip_memory`, and keys and values, four times as many.
            on_score: called as the host's solver goes on, with its iterations and those expected, None if unknown.

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
        clips = None if clip_cache is None else values.absolute_path("clip_cache", clip_cache)
        clip_memory = values.whole_number("clip_memory", clip_memory, least=0)
        on_score = values.function("on_score", on_score)
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
        try:
            return cls(manifest, opened, attention, cache, cast(Scorer | None, score), clip_memory, clips, on_score)
        except BaseException:
            opened.close()
            raise

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
        return self.processing.input_ids(question, n_frames if frames is None else frames, self.text_tokenizer())

    def prepare(self, media: Media, question: str) -> Prepared:
        """A question about what was read, as the components take it.

        Args:
            media: frames of one video ([H, W, 3] uint8 each, RGB); or `Video`s and `Image`s of
                `va_export.runtime.processing`, in the order in which they come in the prompt.

        Raises:
            VaExportError: the bundle has no tokenizer, or frames of another kind.
        """
        return self.processing.prepare(media, values.text("question", question), self.text_tokenizer())

    def text_tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            VaExportError: it has none.
        """
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
        self.check_open()
        max_new_tokens = values.whole_number("max_new_tokens", max_new_tokens, least=1)
        ignore_stop = values.flag("ignore_stop", ignore_stop)
        return_logits = values.flag("return_logits", return_logits)
        on_token = values.function("on_token", on_token)
        forced = None
        if forced_tokens is not None:
            forced = arguments.one_row("forced_tokens", forced_tokens, self._vocab_size)
        n_new = max_new_tokens if forced is None else forced.shape[1]
        self.decoding.check(prepared, n_new)
        stops = () if ignore_stop else self.processing.stop_token_ids
        choice = TokenChoice(GREEDY, ())
        wish = Wish(choice, n_new, stops, None if forced is None else forced[0], keeps_logits=return_logits)
        clock, row, tokens = StageClock(self.backend), Row(), []
        with clock("total"):
            encoded = self._encode(prepared, anchoring or Anchoring(), clock)
            for token in self.decoding.tokens(encoded, wish, clock, row):
                tokens.append(token)
                if on_token is not None:
                    on_token(token)
        return encoded.generation(tokens, row.logits if return_logits else None, clock)

    def watch(
        self,
        video: str | Path | Media,
        *,
        frames: int | None = None,
        sampling: str | None = None,
        allow_truncated: bool = False,
        anchoring: Anchoring | None = None,
    ) -> Clip:
        """See a video once, to ask about it many times.

        Args:
            video: a file, or what `prepare` takes: frames, or `Video`s and `Image`s.
            frames, sampling, allow_truncated: of a file, as for `read_frames`; None: the bundle's own number and rule.
            anchoring: of all questions.

        Raises:
            VaExportError: as `read_frames` and `prepare`; or gains by position, which are of one prompt.
        """
        how = anchoring or Anchoring()
        clip = (
            Clip.of_file(self, video, how, frames, sampling, allow_truncated)
            if isinstance(video, str | Path)
            else Clip(self, video, how)
        )
        _ = clip.seen
        return clip

    def answer_batch(
        self,
        prompts: Sequence[Prepared],
        max_new_tokens: int = 32,
        anchoring: Anchoring | None = None,
        *,
        return_logits: bool = False,
        ignore_stop: bool = False,
    ) -> list[Generation]:
        """Answer several prompts of any lengths: each is prefilled by itself, and all decode together, a row of the KV
        cache each. The answers are those of `answer`; timings are of the whole batch.

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
        self.check_open()
        for prepared in prompts:
            self.decoding.check(prepared, max_new_tokens)
        stops = () if ignore_stop else self.processing.stop_token_ids
        clock = StageClock(self.backend)
        with clock("total"):
            encoded = [self._encode(prepared, anchoring or Anchoring(), clock) for prepared in prompts]
            steps = self.decoding.together(encoded, max_new_tokens, stops, clock, keeps_logits=return_logits)
        return [
            one.generation(
                tokens, [logits[row] for logits in steps.logits[: len(tokens)]] if return_logits else None, clock
            )
            for row, (one, tokens) in enumerate(zip(encoded, steps.tokens, strict=True))
        ]

    @property
    def _vocab_size(self) -> int:
        return self.manifest.data.model.text.vocab_size

    def check_open(self) -> None:
        """Raises:
        VaExportError: the bundle is closed.
        """
        if self._is_closed:
            raise VaExportError("the bundle is closed", where="bundle", fix="open it again")

    def _encode(self, prepared: Prepared, anchoring: Anchoring, clock: StageClock) -> Encoded:
        seen = self.encoder.see(prepared, is_scored=anchoring.needs_score, clock=clock)
        return Encoded(prepared, seen.visual, seen.scored, anchoring.gains(prepared, seen.scored, self.gains))
