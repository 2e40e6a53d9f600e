"""A video that is watched once and asked about many times, and conversations about it.

Reading, the vision component and the score run once. The decoder's keys and values up to the video's last token are
computed with the first question and kept; every further question prefills its own tokens only, and has the logits that
it would have alone, to rounding.

One rule of the paper decides what a conversation is: queries of one token are plain (arXiv 2509.25151). The tokens of
an answer were such queries when they were made, and a conversation goes on from their keys and values as they are. A
prompt that held the earlier answer as text would compute them again, with gains, as its own; so does a conversation
where nothing can be kept (`Backend.keeps_slots`), or whose prompt must be prefilled at once (`TextSizes.whole_from`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from va_export.errors import VaExportError
from va_export.runtime import arguments, values
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.answer import Answer, stream
from va_export.runtime.encoding import Seen
from va_export.runtime.generation import Encoded
from va_export.runtime.prefix import Prefix
from va_export.runtime.processing import Media, Prepared, Video
from va_export.runtime.processing.templates import next_turn
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import GREEDY, Sampling

if TYPE_CHECKING:
    import numpy.typing as npt

    from va_export.runtime.bundle import Bundle
    from va_export.runtime.video import Frames


class Clip:
    """Videos and images that a bundle has seen; `Bundle.watch` makes one.

    Attributes:
        anchoring: how all questions are anchored; by gains for every position none can be.
        file: what was read and found in it, such as damage (`file.reading`); None where it is of no file.
        timings: milliseconds of watching, by stage: vision, score.
    """

    def __init__(self, bundle: Bundle, media: Media, anchoring: Anchoring, file: Frames | None = None) -> None:
        if anchoring.key_log_gain is not None or anchoring.value_gain is not None:
            raise VaExportError(
                "gains for every position fit one prompt, and a clip is for many",
                where="anchoring",
                fix="give alpha_k and alpha_v",
            )
        self.bundle, self.anchoring, self.file = bundle, anchoring, file
        self._media = media
        self._given: Mapping[str, npt.NDArray[Any]] = bundle.processing.given(media)
        self.timings: dict[str, float] = {}

    @classmethod
    def of_file(
        cls,
        bundle: Bundle,
        path: str | Path,
        anchoring: Anchoring,
        frames: int | None = None,
        sampling: str | None = None,
        allow_truncated: bool = False,
    ) -> Clip:
        """A clip of a file, of which nothing is seen yet; see `Bundle.watch`."""
        from va_export.runtime.video import is_by_rate, read_frames

        rule, most = sampling or bundle.processing.frame_sampling, bundle.limits.max_frames
        usual = most if is_by_rate(rule) else bundle.default_frames
        count = usual if frames is None else values.whole_number("frames", frames, least=1)
        arguments.frame_count(count, most)
        read = read_frames(path, count, rule, allow_truncated=allow_truncated)
        return cls(bundle, Video(read.pixels, timestamps=read.timestamps), anchoring, read)

    @cached_property
    def seen(self) -> Seen:
        """Visual tokens and their score. The first who asks has them made."""
        self.bundle.check_open()
        clock, is_scored = StageClock(self.bundle.backend), self.anchoring.needs_score
        seen = self.bundle.encoder.recall(self.prepare(""), is_scored=is_scored, clock=clock)
        self.timings = dict(clock.milliseconds)
        return seen

    @property
    def sharing_score(self) -> npt.NDArray[Any] | None:
        """Of the visual tokens that are scored, (N,) in [0, 1]; None without anchors."""
        return None if self.seen.scored is None else self.seen.scored.sharing_score

    def ask(
        self,
        question: str,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Answer:
        """A question by itself; its answer is made as it is read.

        Args:
            sampling: how tokens are chosen.
            stop: texts that end the answer and are not part of it.
            logprobs: how many of the likeliest tokens `Answer.logprobs` names at each step; None: nothing is noted.

        Raises:
            VaExportError: values of a wrong type, or a prompt beyond the bundle's limits; while it is read: another
                answer of this thread has not ended, or logits are not finite.
        """
        return stream(self, self.prepare(question), max_new_tokens, sampling, stop, logprobs)

    def converse(self) -> Conversation:
        """A conversation, in which each question comes after the answers before it."""
        return Conversation(self)

    def encoded(self, prepared: Prepared) -> Encoded:
        """A prompt about this clip, with what was seen."""
        gains = self.anchoring.gains(prepared, self.seen.scored, self.bundle.gains)
        return Encoded(prepared, self.seen.visual, self.seen.scored, gains)

    def prepare(self, question: str) -> Prepared:
        """The prompt of a question by itself."""
        question = values.text("question", question)
        return self.bundle.processing.prepare(self._media, question, self.bundle.text_tokenizer(), self._given)


class Conversation:
    """Questions and answers about one clip, each after all before it; `Clip.converse` makes one.

    Attributes:
        turns: questions and the answers' texts. An answer that was cut off counts as far as it was given out.
    """

    def __init__(self, clip: Clip) -> None:
        self.turns: list[tuple[str, str]] = []
        self._clip = clip
        self._prepared: Prepared | None = None
        self._past: Prefix | None = None
        self._open: weakref.ref[Answer] | None = None  # one that nobody reads any more is no part of this

    def ask(
        self,
        question: str,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Answer:
        """The next question; see `Clip.ask`.

        Raises:
            VaExportError: as there; or the answer before has not ended, or the model's template tells no further turns.
        """
        before = None if self._open is None else self._open()
        if before is not None and before.finish_reason is None:
            raise VaExportError(
                "the answer to the question before has not ended",
                where="conversation",
                fix="read it to its end, or close it",
            )
        question = values.text("question", question)
        prepared = self._clip.prepare(question) if self._prepared is None else self._prepared.then(self._turn(question))

        def on_end(ended: Answer) -> None:
            self._end(question, prepared, ended)

        answer = stream(self._clip, prepared, max_new_tokens, sampling, stop, logprobs, past=self._past, on_end=on_end)
        self._open = weakref.ref(answer)
        return answer

    def _turn(self, question: str) -> list[int]:
        processing, tokenizer = self._clip.bundle.processing, self._clip.bundle.text_tokenizer()
        closings = [text for text in map(tokenizer.text_of, processing.stop_token_ids) if text is not None]
        text = next_turn(processing.chat_template, question, closings)
        if text is None:
            raise VaExportError(
                "this model's template does not tell how a question follows an answer",
                where="conversation",
                fix="ask single questions (Clip.ask)",
            )
        ids = tokenizer.encode(text)
        processing.prepare_ids(np.array([ids], np.int64), {}, 0)  # refuses placeholders: there is nothing for them
        return ids

    def _end(self, question: str, prepared: Prepared, answer: Answer) -> None:
        if not answer.tokens:  # closed before it began: nothing was said, and what is kept stays
            return
        self.turns.append((question, answer.text))
        self._prepared = prepared.then(answer.shown_tokens)
        kept = answer.kept
        # What the answer's text does not show (a stop id, the end of a stop text) is no part of the conversation.
        self._past = None if kept is None else kept.cut(self._prepared.length)
