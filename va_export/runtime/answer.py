"""An answer as text while it is made: to be iterated over, stopped at a text, or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self

from va_export.errors import VaExportError
from va_export.runtime import values
from va_export.runtime.decoding import Row, Wish
from va_export.runtime.prefix import Prefix
from va_export.runtime.processing import Prepared
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import LogProbability, Sampling, TokenChoice
from va_export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from va_export.runtime.clip import Clip

FinishReason = Literal["stop", "length", "cancelled", "failed"]
_MOST_STOPS = 16


class Answer(Iterator[str]):
    """Pieces of an answer's text, each as soon as it is settled. Iterate to the end, call `read`, or use it as a
    context manager: the bundle answers nothing else in between.

    Attributes:
        tokens: ids so far; the last is a stop id if one came up.
        finish_reason: `stop` at a stop id or a stop text, `length` after the most tokens that were asked for,
            `cancelled`, or `failed` with an error; None while it is made.
        sampling: how tokens are chosen, with the seed that it had.
    """

    def __init__(
        self,
        tokens: Generator[int],
        row: Row,
        choice: TokenChoice,
        tokenizer: Tokenizer,
        stop_ids: Sequence[int],
        stop_texts: StopTexts,
        clock: StageClock,
        on_end: Callable[[Answer], None] | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.sampling: Sampling = choice.sampling
        self._choice, self._row, self._clock = choice, row, clock
        self._stop_ids, self._stops = frozenset(stop_ids), stop_texts
        self._tokenizer, self._stream = tokenizer, tokenizer.stream()
        self._text: list[str] = []
        self._is_cancelled = False
        self._on_end = on_end
        self._tokens = tokens

    @property
    def text(self) -> str:
        """What was given out so far."""
        return "".join(self._text)

    @property
    def reused_tokens(self) -> int:
        """How many of the prompt's tokens needed no prefill."""
        return self._row.reused

    @property
    def logprobs(self) -> list[LogProbability]:
        """One for each token, if they were asked for."""
        return self._choice.noted

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds by stage so far, without those of watching: prefill, decode (all steps), total."""
        spent = {stage: value for stage, value in self._clock.milliseconds.items() if "/" not in stage}
        return {**self._clock.milliseconds, "total": sum(spent.values())}

    @property
    def shown_tokens(self) -> list[int]:
        """The tokens whose text was given out, without a stop id and without those of a text to stop at, or of one that
        was held back when the answer was closed."""
        shown = [token for token in self.tokens if token not in self._stop_ids]
        is_cut = self._stops.is_met or self.finish_reason == "cancelled"
        while is_cut and shown and len(self._tokenizer.decode(shown)) > len(self.text):
            shown.pop()
        return shown

    @property
    def kept(self) -> Prefix | None:
        """The slots of prompt and answer, but for the last token, where they were to be kept."""
        return self._row.kept

    def read(self) -> str:
        """The whole text, waiting for what is missing."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End it after the token that is being made; any thread may ask for that."""
        self._is_cancelled = True

    def close(self) -> None:
        """End it here; what was given out stays."""
        if self.finish_reason is None:
            self._finish("cancelled")

    # No generator of its own: one that knew this object would keep it, and its turn, until garbage is collected.
    def __next__(self) -> str:
        while self.finish_reason is None:
            if piece := self._advance():
                return piece
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advance(self) -> str:
        try:
            token = next(self._tokens, None)
        except BaseException:
            self.finish_reason = "failed"
            self._tokens.close()
            raise
        if token is None:
            return self._end("length")
        self.tokens.append(token)
        if token in self._stop_ids:
            return self._end("stop")
        piece = self._stops.push(self._stream.push(token))
        self._text.append(piece)
        if self._stops.is_met:
            self._finish("stop")
        elif self._is_cancelled:
            return piece + self._end("cancelled")
        return piece

    def _end(self, reason: FinishReason) -> str:
        rest = self._stops.push(self._stream.finish())
        rest += "" if self._stops.is_met else self._stops.finish()
        self._text.append(rest)
        self._finish("stop" if self._stops.is_met else reason)
        return rest

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._tokens.close()  # gives the turn to others
        if self._on_end is not None:
            self._on_end(self)


def stream(
    clip: Clip,
    prepared: Prepared,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str],
    logprobs: int | None,
    *,
    past: Prefix | None = None,
    on_end: Callable[[Answer], None] | None = None,
) -> Answer:
    """An answer to a prompt about a clip; see `Clip.ask` and `Decoding.tokens`. Slots are kept where `on_end` wants
    them.

    Raises:
        VaExportError: values of a wrong type, a prompt beyond the bundle's limits, or a closed bundle.
    """
    bundle = clip.bundle
    bundle.check_open()
    max_new_tokens = values.whole_number("max_new_tokens", max_new_tokens, least=1)
    bundle.decoding.check(prepared, max_new_tokens)
    choice = TokenChoice(sampling, prepared.input_ids[0].tolist(), logprobs)
    clock, row, stops = StageClock(bundle.backend), Row(), bundle.processing.stop_token_ids
    wish = Wish(choice, max_new_tokens, stops)
    stop_texts = StopTexts(stop)  # what is wrong with it is said before any work
    encoded, seen = clip.encoded(prepared), clip.seen.digest
    tokens = bundle.decoding.tokens(encoded, wish, clock, row, seen=seen, past=past, keeps=on_end is not None)
    return Answer(tokens, row, choice, bundle.text_tokenizer(), stops, stop_texts, clock, on_end)


class StopTexts:
    """Passes text on up to the first of some texts, and holds back what may yet become one."""

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or len(texts) > _MOST_STOPS:
            raise VaExportError(
                f"stop is {texts!r:.80}", where="stop", fix=f"give a list of at most {_MOST_STOPS} texts"
            )
        self._texts = [values.text("stop", text) for text in texts]
        if "" in self._texts:
            raise VaExportError("a text to stop at is empty", where="stop", fix="leave it out")
        self._held = ""
        self.is_met = False

    def push(self, piece: str) -> str:
        """What of the text so far, with `piece`, may be given out."""
        self._held += piece
        places = [place for text in self._texts if (place := self._held.find(text)) >= 0]
        if places:
            self.is_met = True
            self._held, given = "", self._held[: min(places)]
            return given
        end = len(self._held)
        for text in self._texts:
            for length in range(min(len(text) - 1, len(self._held)), 0, -1):
                if self._held.endswith(text[:length]):
                    end = min(end, len(self._held) - length)
                    break
        given, self._held = self._held[:end], self._held[end:]
        return given

    def finish(self) -> str:
        """What was held back for nothing."""
        given, self._held = self._held, ""
        return given
