"""From video frames and a question to the model's inputs, on the host.

A bundle carries this as JSON, so that running it needs neither the family that exported it nor PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.runtime.video import SAMPLERS, sample_frames

if TYPE_CHECKING:
    from va_export.runtime.tokenizer import Tokenizer

_RESAMPLE = ("bicubic", "bilinear")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Processing:
    """How one model wants its frames and its prompt.

    Attributes:
        image_size: a frame is resized to image_size × image_size, without keeping its aspect ratio.
        mean, std: of the colour channels, for values in [0, 1].
        resample: "bicubic" or "bilinear", as Pillow computes them.
        frame_sampling: name of the rule that picks frames; see `runtime.video.SAMPLERS`.
        tokens_per_frame: placeholders (and visual tokens) of one frame.
        image_token, image_token_id: the placeholder; its id is None where the checkpoint does not tell it.
        chat_template: the whole prompt, with the fields {frames} and {question}.
        frame_template: one frame's line, with the fields {number} (from 1) and {image}.
        bos_token_id: first id of every prompt, or None.
        stop_token_ids: ids that end an answer.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    frame_sampling: str
    tokens_per_frame: int
    image_token: str
    image_token_id: int | None
    chat_template: str
    frame_template: str
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_choice("resample", self.resample, _RESAMPLE)
        _check_choice("frame_sampling", self.frame_sampling, tuple(SAMPLERS))
        _check_fields("chat_template", self.chat_template, ("frames", "question"))
        _check_fields("frame_template", self.frame_template, ("number", "image"))
        if self.image_size < 1 or self.tokens_per_frame < 1 or not all(value > 0 for value in self.std):
            raise VaExportError("image_size, tokens_per_frame and std must be positive", where="processing")

    def to_json(self) -> str:
        """JSON text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Processing:
        """Read what `to_json` wrote.

        Raises:
            VaExportError: not JSON, or fields are missing, unknown or of the wrong kind.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise VaExportError(f"the processing description is not JSON: {error}", where="processing") from error
        expected = {field.name for field in dataclasses.fields(cls)}
        found = set(content) if isinstance(content, dict) else set()
        if found != expected:
            raise VaExportError(
                f"the description lacks {sorted(expected - found)}, adds {sorted(found - expected)}",
                where="processing",
                fix="export the bundle again with this version",
            )
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**fields)

    def frame_indices(self, frame_count: int, n_frames: int) -> list[int]:
        """Which `n_frames` of `frame_count` frames to take."""
        return sample_frames(self.frame_sampling, frame_count, n_frames)

    def pixel_values(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Frames [F, H, W, 3], RGB uint8 → normalised pixels [F, 3, image_size, image_size], float32.

        Raises:
            VaExportError: another shape or type.
        """
        from PIL import Image

        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise VaExportError(
                f"frames are {list(frames.shape)} {frames.dtype}, expected [frames, height, width, 3] uint8",
                where="frames",
            )
        filter_ = Image.Resampling.BICUBIC if self.resample == "bicubic" else Image.Resampling.BILINEAR
        size = (self.image_size, self.image_size)
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        pixels = np.empty((len(frames), 3, *size), dtype=np.float32)
        for number, frame in enumerate(frames):
            resized = np.asarray(Image.fromarray(frame).resize(size, filter_), dtype=np.float32)
            pixels[number] = ((resized / np.float32(255.0) - mean) / std).transpose(2, 0, 1)
        return pixels

    def prompt_text(self, question: str, n_frames: int) -> str:
        """The prompt for a question about `n_frames` frames, placeholders written out."""
        image = self.image_token * self.tokens_per_frame
        frames = "".join(
            _fill(self.frame_template, number=str(number), image=image) for number in range(1, n_frames + 1)
        )
        return _fill(self.chat_template, frames=frames, question=question)

    def input_ids(self, question: str, n_frames: int, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
        """Ids [1, S] of `prompt_text`.

        Raises:
            VaExportError: the number of placeholders came out wrong (a question that spells the image token).
        """
        ids = tokenizer.encode(self.prompt_text(question, n_frames))
        if self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        return self._checked(ids, n_frames)

    def token_prompt(self, ids_before: Sequence[int], ids_after: Sequence[int], n_frames: int) -> npt.NDArray[np.int64]:
        """Ids [1, S] without a tokenizer: `ids_before`, every frame's placeholders, `ids_after`, and nothing else.

        Raises:
            VaExportError: the given ids contain the image token.
        """
        if self.image_token_id is None:
            raise VaExportError(
                "the id of the image placeholder is not known",
                where="processing",
                fix="put the placeholders into the ids yourself, or export with --image-token-id",
            )
        placeholders = [self.image_token_id] * (n_frames * self.tokens_per_frame)
        return self._checked([*ids_before, *placeholders, *ids_after], n_frames)

    def _checked(self, ids: Sequence[int], n_frames: int) -> npt.NDArray[np.int64]:
        array = np.asarray([ids], dtype=np.int64)
        found, expected = int((array == self.image_token_id).sum()), n_frames * self.tokens_per_frame
        if found != expected:
            raise VaExportError(
                f"the prompt has {found} tokens {self.image_token}, {n_frames} frames need {expected}",
                where="prompt",
                fix=f"leave {self.image_token} out of the question; check that the tokenizer fits the model",
            )
        return array


def _fill(template: str, **values: str) -> str:
    """Fill the fields of a template in one pass, so that a value may itself contain braces."""
    return _FIELD.sub(lambda match: values[match[1]], template)


def _check_fields(name: str, template: Any, expected: tuple[str, ...]) -> None:
    found = tuple(_FIELD.findall(template)) if isinstance(template, str) else ()
    if sorted(found) != sorted(expected):
        raise VaExportError(f"{name} has the fields {list(found)}, expected {list(expected)}", where="processing")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise VaExportError(f"{name} is {value!r}, expected one of {', '.join(choices)}", where="processing")
