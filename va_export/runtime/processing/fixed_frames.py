"""Frames that all become one square of pixels and one number of tokens, each on a line of the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from va_export.documents import Form
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.processing.media import (
    Frames,
    Media,
    Video,
    as_media,
    check_normalisation,
    normalise,
    pictures,
    resize,
)
from va_export.runtime.processing.prepared import Prepared, count_up
from va_export.runtime.processing.templates import check_fields, fill
from va_export.runtime.video import SAMPLERS

if TYPE_CHECKING:
    from va_export.runtime.tokenizer import Tokenizer

_PIXELS = "pixel_values"
_LARGEST = 1 << 14  # of sizes and counts: far above any model's, and far below what fills a machine's memory by itself


class FixedFrames(Form, frozen=True, tag_field="kind", tag="fixed_frames"):
    """How one model wants its frames and its prompt.

    Attributes:
        image_size: a frame is resized to image_size × image_size, without keeping its aspect ratio.
        mean, std: of the colour channels, for values in [0, 1].
        resample: as Pillow computes it.
        frame_sampling: name of the rule that picks frames; see `runtime.video.SAMPLERS`.
        tokens_per_frame: placeholders (and visual tokens) of one frame.
        tokens_after: further ones after the last frame.
        grid: rows and columns that a frame's tokens fill in order; None: a square, if they fill one.
        image_token, image_token_id: the placeholder; its id is None where the checkpoint does not tell it, and below 0
            where it is no token: prompts are cut at it, and what lies between is tokenized by itself.
        chat_template: the whole prompt, with the fields {frames} and {question}.
        frame_template: what stands for one frame, with the field {image}, and perhaps {number} (from 1).
        bos_token_id: first id of every prompt, or None.
        stop_token_ids: ids that end an answer.
        frames: how many a question takes unless asked otherwise.
        prefix_ids: ids between the first and those of the text, which the text does not spell.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bicubic", "bilinear"]
    frame_sampling: str
    tokens_per_frame: int
    image_token: str
    image_token_id: int | None
    chat_template: str
    frame_template: str
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    frames: int = 8
    tokens_after: int = 0
    grid: tuple[int, int] | None = None
    prefix_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.frame_sampling not in SAMPLERS:
            raise ValueError(f"frame_sampling is {self.frame_sampling!r}, expected one of {', '.join(SAMPLERS)}")
        check_fields("chat_template", self.chat_template, ("frames", "question"))
        check_fields("frame_template", self.frame_template, ("image",), optional=("number",))
        if min(self.image_size, self.tokens_per_frame, self.frames) <= 0:
            raise ValueError("image_size, tokens_per_frame and frames must be positive")
        check_normalisation(self.mean, self.std)
        if not 0 <= self.tokens_after <= _LARGEST:
            raise ValueError(f"tokens_after is {self.tokens_after}")
        if self.grid is not None and (min(self.grid) < 1 or math.prod(self.grid) != self.tokens_per_frame):
            raise ValueError(f"grid {self.grid} does not hold the {self.tokens_per_frame} tokens of a frame")
        for name in ("image_size", "tokens_per_frame", "frames"):
            if getattr(self, name) > _LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, more than {_LARGEST}")
        if not self.image_token:
            raise ValueError("image_token is empty")
        for name in ("bos_token_id", "stop_token_ids", "prefix_ids"):
            ids = getattr(self, name)
            if any(number is not None and number < 0 for number in (ids if isinstance(ids, tuple) else (ids,))):
                raise ValueError(f"{name} must be at least 0, not {ids}")

    @property
    def marker(self) -> int | None:
        """An id outside of the vocabulary that prompts may hold; None without one."""
        return self.image_token_id if self.image_token_id is not None and self.image_token_id < 0 else None

    def with_frames(self, frames: int) -> FixedFrames:
        """The same with another default number of frames."""
        return msgspec.structs.replace(self, frames=frames)

    def given(self, media: Media) -> dict[str, npt.NDArray[Any]]:
        """What `prepare_ids` takes beside the ids.

        Raises:
            VaExportError: anything but frames of one video.
        """
        match as_media(media):
            case [Video(frames)]:
                return {_PIXELS: self.pixel_values(frames)}
        raise VaExportError(
            "this model takes the frames of one video, no images and no further videos",
            where="frames",
            fix="ask about one video at a time",
        )

    def vision_inputs(self, media: Media) -> dict[str, npt.NDArray[Any]]:
        """What the vision component takes."""
        return self.given(media)

    def pixel_values(self, frames: Frames) -> npt.NDArray[np.float32]:
        """Frames [F, H, W, 3] (or as many [H, W, 3] of any sizes), RGB uint8 → normalised pixels
        [F, 3, image_size, image_size], float32.

        Raises:
            VaExportError: another shape or type.
        """
        channels = self.resized(frames).transpose(0, 3, 1, 2)  # [F, 3, S, S]
        return np.ascontiguousarray(normalise(channels, self.mean, self.std, channel_axis=1))

    def resized(self, frames: Frames) -> npt.NDArray[np.uint8]:
        """Frames as the model sees them, [F, image_size, image_size, 3] uint8.

        Raises:
            VaExportError: another shape or type.
        """
        return resize(pictures(frames), self.image_size, self.image_size, self.resample)

    def prepare(
        self,
        media: Media,
        question: str,
        tokenizer: Tokenizer,
        given: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Prepared:
        """A question about frames that were read.

        Args:
            given: what `given` made of them, where that is known.

        Raises:
            VaExportError: frames of another shape or type, or a question that spells the image token.
        """
        pixels = (given or self.given(media))[_PIXELS]
        return self._prepared({_PIXELS: pixels}, self._ids(question, len(pixels), tokenizer), len(pixels))

    def prepare_ids(
        self, input_ids: npt.NDArray[np.int64], given: Mapping[str, npt.ArrayLike], max_frames: int
    ) -> Prepared:
        """A prompt that is given as ids: one placeholder for each visual token, or one that stands for all of them.

        Args:
            input_ids: (1, S).
            given: `pixel_values`, or nothing for a prompt without frames.

        Raises:
            VaExportError: pixels of another shape, placeholders that do not match them, or what only frames of
                different sizes have.
        """
        if others := given.keys() - {_PIXELS}:
            raise VaExportError(
                f"all frames of this model have one size and one number of tokens: there is no {min(others)} to give",
                where=min(others),
                fix="leave it out",
            )
        if not given:
            return self._prepared({}, input_ids, 0)
        pixels = arguments.pixels(given[_PIXELS], self.image_size, max_frames)
        expected = self._count(len(pixels))
        if self.image_token_id is not None and expected > 1 and (input_ids == self.image_token_id).sum() == 1:
            place = int(np.flatnonzero(input_ids[0] == self.image_token_id)[0])
            whole = np.full(expected, self.image_token_id)
            input_ids = np.concatenate([input_ids[0, :place], whole, input_ids[0, place + 1 :]])[None]
        return self._prepared({_PIXELS: pixels}, input_ids, len(pixels))

    def count(self, given: Mapping[str, npt.NDArray[Any]]) -> int:
        """Visual tokens of what `given` made."""
        return self._count(len(given[_PIXELS]))

    def _count(self, n_frames: int) -> int:
        return n_frames * self.tokens_per_frame + (self.tokens_after if n_frames else 0)

    def prompt_text(self, question: str, n_frames: int) -> str:
        """The prompt for a question about `n_frames` frames, placeholders written out."""
        image = self.image_token * self.tokens_per_frame
        frames = "".join(
            fill(self.frame_template, number=str(number), image=image) for number in range(1, n_frames + 1)
        )
        frames += self.image_token * self.tokens_after if n_frames else ""
        return fill(self.chat_template, frames=frames, question=question)

    def input_ids(self, question: str, media: Media | int, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
        """Ids [1, S] of a question, placeholders in place.

        Args:
            media: the frames, or their number.

        Raises:
            VaExportError: the number of placeholders came out wrong (a question that spells the image token).
        """
        if isinstance(media, int):
            return self._ids(question, media, tokenizer)
        return self._ids(question, len(self.given(media)[_PIXELS]), tokenizer)

    def _ids(self, question: str, n_frames: int, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
        text = self.prompt_text(question, n_frames)
        ids = tokenizer.encode(text) if self.marker is None else self._cut(text, tokenizer)
        ids = [*self.prefix_ids, *ids]
        if self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        array = np.asarray([ids], dtype=np.int64)
        found, expected = int((array == self.image_token_id).sum()), self._count(n_frames)
        if found != expected:
            raise VaExportError(
                f"the prompt has {found} tokens {self.image_token}, {n_frames} frames need {expected}",
                where="prompt",
                fix=f"leave {self.image_token} out of the question; check that the tokenizer fits the model",
            )
        return array

    def _cut(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Ids of a text, the marker in the places of the placeholder."""
        assert self.marker is not None
        ids: list[int] = []
        for number, piece in enumerate(text.split(self.image_token)):
            ids += [self.marker] * (number > 0) + (tokenizer.encode(piece) if piece else [])
        return ids

    def _prepared(
        self, vision_inputs: Mapping[str, npt.NDArray[Any]], input_ids: npt.NDArray[np.int64], n_frames: int
    ) -> Prepared:
        is_visual = self._placeholders(input_ids, n_frames)
        side = math.isqrt(self.tokens_per_frame)
        grid = self.grid or ((side, side) if side**2 == self.tokens_per_frame else None)
        return Prepared(
            vision_inputs=vision_inputs,
            # Whatever stands for a marker is embedded, and then replaced by a visual token.
            input_ids=input_ids if self.marker is None else np.where(is_visual, 0, input_ids),
            is_visual=is_visual,
            is_scored=is_visual,
            position_ids=count_up(input_ids.shape[1]),
            next_position=input_ids.shape[1],
            grid=(n_frames, *grid) if n_frames and grid is not None else None,
        )

    def _placeholders(self, ids: npt.NDArray[np.int64], n_frames: int) -> npt.NDArray[np.bool_]:
        """Which positions take visual tokens, (1, S)."""
        token, count = self.image_token_id, self._count(n_frames)
        if token is None and not n_frames:
            return np.zeros(ids.shape, dtype=np.bool_)
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
        is_visual: npt.NDArray[np.bool_] = ids == token
        if (found := int(is_visual.sum())) != count:
            raise VaExportError(
                f"the prompt has {found} image placeholders (id {token}); "
                + (f"the frames give {count} visual tokens" if n_frames else "there are no frames"),
                where="generate",
                fix=f"put {count} placeholders into the prompt, or one for all"
                if n_frames
                else "give pixel_values, or leave the placeholders out",
            )
        return is_visual
