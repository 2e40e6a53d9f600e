"""Videos and images that keep their shape: as many patches as their sizes ask for, frames taken together to grids, and
positions in time, row and column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from va_export.documents import Form
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.processing.grid_positions import GridRun, grid_positions
from va_export.runtime.processing.media import (
    Frames,
    Image,
    Media,
    Medium,
    Video,
    as_media,
    check_normalisation,
    normalise,
    pictures,
    resize,
)
from va_export.runtime.processing.patches import Grid, fit_size, to_patches, tower_inputs
from va_export.runtime.processing.prepared import Prepared
from va_export.runtime.processing.templates import check_fields, fill
from va_export.runtime.video import SAMPLERS

if TYPE_CHECKING:
    from va_export.runtime.tokenizer import Tokenizer

Int64 = npt.NDArray[np.int64]
Given = Mapping[str, npt.NDArray[Any]]
_CHANNELS = 3
_LARGEST, _MOST_PIXELS = 1 << 14, 1 << 28
_PIXELS, _GRIDS, _SECONDS = "pixel_values", "grid_thw", "seconds_per_grid"


class PatchGrid(Form, frozen=True, tag_field="kind", tag="patch_grid"):
    """How one model wants its videos, images and prompt.

    Attributes:
        patch_size: pixels of a patch's side.
        merge_size: merge_size² patches are one visual token.
        frames_per_grid: frames that a step of the model's time takes together.
        window_size: pixels of the side of an attention window; None without windows.
        position_side: of the square of learned positions that is stretched over each picture; None without such.
        video_pixels, image_pixels: the least and the most of a picture after it is resized.
        mean, std: of the colour channels, for values in [0, 1].
        resample: as Pillow computes it.
        frame_sampling: name of the rule that picks frames; see `runtime.video.SAMPLERS`.
        video_token, image_token, and their ids: the placeholders.
        chat_template: the whole prompt, with the fields {media} and {question}.
        video_template, image_template: what stands for one of them in {media}, with the field {placeholders}.
        step_template: what stands for one step of a video's time, with the fields {seconds} and {placeholders}, all of
            which together are the {placeholders} of the video; each step then has positions like an image's. None: the
            placeholders alone.
        tokens_per_second: positions that a second takes on the axis of time.
        seconds_per_grid: between two grids, unless told otherwise.
        stop_token_ids: ids that end an answer.
        bos_token_id: first id of every prompt, or None.
        frames: how many a question takes unless asked otherwise.
    """

    patch_size: int
    merge_size: int
    frames_per_grid: int
    window_size: int | None
    video_pixels: tuple[int, int]
    image_pixels: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bicubic", "bilinear"]
    frame_sampling: str
    video_token: str
    video_token_id: int
    image_token: str
    image_token_id: int
    chat_template: str
    video_template: str
    image_template: str
    tokens_per_second: float
    seconds_per_grid: float
    stop_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    frames: int = 8
    position_side: int | None = None
    step_template: str | None = None

    def __post_init__(self) -> None:
        if self.frame_sampling not in SAMPLERS:
            raise ValueError(f"frame_sampling is {self.frame_sampling!r}, expected one of {', '.join(SAMPLERS)}")
        check_fields("chat_template", self.chat_template, ("media", "question"))
        for name in ("video_template", "image_template"):
            check_fields(name, getattr(self, name), ("placeholders",))
        if self.step_template is not None:
            check_fields("step_template", self.step_template, ("seconds", "placeholders"))
        for name in ("patch_size", "merge_size", "frames_per_grid", "window_size", "frames", "position_side"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _LARGEST:
                raise ValueError(f"{name} is {value}, expected 1 to {_LARGEST}")
        if self.window_size is not None and self.window_size % self._multiple:
            raise ValueError(f"window_size is {self.window_size}, which is no multiple of {self._multiple}")
        for name in ("video_pixels", "image_pixels"):
            least, most = getattr(self, name)
            if not self._multiple**2 <= most <= _MOST_PIXELS or not 1 <= least <= most:
                raise ValueError(f"{name} are {least} to {most}, which no picture can have")
        if min(self.tokens_per_second, self.seconds_per_grid) <= 0:
            raise ValueError("tokens_per_second and seconds_per_grid must be positive")
        check_normalisation(self.mean, self.std)
        if not self.video_token or not self.image_token or self.video_token_id == self.image_token_id:
            raise ValueError("video_token and image_token must be two, and not empty")
        ids = (self.video_token_id, self.image_token_id, *self.stop_token_ids)
        if any(number is not None and number < 0 for number in (*ids, self.bos_token_id)):
            raise ValueError(f"ids must be at least 0, not {ids}")

    @property
    def marker(self) -> int | None:
        """An id outside of the vocabulary that prompts may hold: there is none."""
        return None

    @property
    def _multiple(self) -> int:
        """What the sides of pictures are multiples of, in pixels."""
        return self.patch_size * self.merge_size

    def with_frames(self, frames: int) -> PatchGrid:
        """The same with another default number of frames."""
        return msgspec.structs.replace(self, frames=frames)

    def resized(self, frames: Frames) -> npt.NDArray[np.uint8]:
        """Frames of a video as the model sees them, [F, H, W, 3] uint8.

        Raises:
            VaExportError: another shape or type, or frames of different sizes.
        """
        return self._fitted(pictures(frames), self.video_pixels)

    def given(self, media: Media) -> dict[str, npt.NDArray[Any]]:
        """What `prepare_ids` takes beside the ids: patches (P, C·frames_per_grid·patch²), grids (n, 3) in patches, and
        seconds between the grids of each video.

        Raises:
            VaExportError: frames of another shape or type, or of different sizes in one video.
        """
        listed = as_media(media)
        cut = [self._patches(medium) for medium in listed]
        seconds = [self._seconds(medium) for medium in listed if isinstance(medium, Video)]
        return {
            _PIXELS: np.concatenate([patches for patches, _ in cut]),
            _GRIDS: np.array([grid for _, grid in cut], np.int64),
            **({_SECONDS: np.array(seconds, np.float32)} if seconds and self.step_template is None else {}),
        }

    def vision_inputs(self, media: Media) -> dict[str, npt.NDArray[Any]]:
        """What the vision component takes."""
        given = self.given(media)
        return self._vision_inputs(given[_PIXELS], _as_grids(given[_GRIDS]))

    def prepare(self, media: Media, question: str, tokenizer: Tokenizer, given: Given | None = None) -> Prepared:
        """A question about videos and images that were read; see `FixedFrames.prepare`.

        Raises:
            VaExportError: as `given`, or a question that spells a placeholder.
        """
        listed, given = as_media(media), given or self.given(media)
        grids = _as_grids(given[_GRIDS])
        return self._prepared(self._ids(question, listed, grids, tokenizer), grids, given)

    def prepare_ids(self, input_ids: Int64, given: Mapping[str, npt.ArrayLike], max_frames: int) -> Prepared:
        """A prompt that is given as ids: one placeholder for each visual token, or one for each video and image.

        Args:
            input_ids: (1, S).
            given: `pixel_values`, `grid_thw` and perhaps `seconds_per_grid`, videos and images in the order of the
                prompt; or nothing for a prompt without them.

        Raises:
            VaExportError: arrays that do not fit each other, or placeholders that do not fit them.
        """
        if not given:
            return self._prepared(input_ids, [], {})
        for name in (_PIXELS, _GRIDS):
            if name not in given:
                raise VaExportError(
                    f"{name} is missing: this model's patches come with the grids that they fill",
                    where=name,
                    fix="give pixel_values and grid_thw, as bundle.processing.given(frames) makes them",
                )
        grids = _as_grids(arguments.grids(given[_GRIDS], self.merge_size))
        steps, most = sum(t for t, _, _ in grids), -(-max_frames // self.frames_per_grid)
        if steps > most:
            raise VaExportError(
                f"{steps} grids of {self.frames_per_grid} frames are more than this bundle's max_frames ({max_frames})",
                where=_GRIDS,
                fix="use fewer frames, or export with a larger --max-frames",
            )
        width = _CHANNELS * self.frames_per_grid * self.patch_size**2
        patches = arguments.patches(given[_PIXELS], sum(map(math.prod, grids)), width)
        checked: dict[str, npt.NDArray[Any]] = {_PIXELS: patches}
        if _SECONDS in given:
            checked[_SECONDS] = arguments.seconds(given[_SECONDS], in_prompt=self.step_template is not None)
        return self._prepared(self._expanded(input_ids, grids), grids, checked)

    def count(self, given: Mapping[str, npt.NDArray[Any]]) -> int:
        """Visual tokens of what `given` made."""
        return len(given[_PIXELS]) // self.merge_size**2

    def input_ids(self, question: str, media: Media | int, tokenizer: Tokenizer) -> Int64:
        """Ids [1, S] of a question.

        Args:
            media: with these, placeholders are in place. A number of frames does not tell how many tokens they become:
                one placeholder stands for them all, which `prepare_ids` puts in place.

        Raises:
            VaExportError: the number of placeholders came out wrong (a question that spells one).
        """
        if isinstance(media, int):
            steps = 1 if self.step_template is None else -(-media // self.frames_per_grid)
            token = (steps, self.merge_size, self.merge_size)
            return self._ids(question, [Video([])] * bool(media), [token], tokenizer)
        return self._ids(question, as_media(media), _as_grids(self.given(media)[_GRIDS]), tokenizer)

    def _ids(self, question: str, media: Sequence[Medium], grids: Sequence[Grid], tokenizer: Tokenizer) -> Int64:
        written = [
            fill(self.image_template, placeholders=self.image_token * self._tokens(grid))
            if isinstance(medium, Image)
            else fill(self.video_template, placeholders=self._video_text(medium, grid))
            for medium, grid in zip(media, grids, strict=False)
        ]
        ids = tokenizer.encode(fill(self.chat_template, media="".join(written), question=question))
        if self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        array = np.array([ids], np.int64)
        expected = sum(self._tokens(grid) for _, grid in zip(media, grids, strict=False))
        if (found := int(self._is_placeholder(array).sum())) != expected:
            raise VaExportError(
                f"the prompt has {found} placeholders, its videos and images need {expected}",
                where="prompt",
                fix=f"leave {self.video_token} and {self.image_token} out of the question; check that the tokenizer"
                " fits the model",
            )
        return array

    def _video_text(self, video: Video, grid: Grid) -> str:
        """The placeholders of a video, and what its steps say of the time."""
        if self.step_template is None:
            return self.video_token * self._tokens(grid)
        step = self.video_token * self._tokens((1, *grid[1:]))
        return "".join(
            fill(self.step_template, seconds=f"{seconds:.1f}", placeholders=step)
            for seconds in self._times(video, grid[0])
        )

    def _seconds(self, video: Video) -> float:
        return self.seconds_per_grid if video.seconds_per_grid is None else video.seconds_per_grid

    def _times(self, video: Video, steps: int) -> list[float]:
        """Seconds of each step: between its first frame and its last; the last frame stands for missing ones."""
        per, count = self.frames_per_grid, len(video.frames)
        times = video.timestamps
        if times is None:
            times = [self._seconds(video) / per * number for number in range(count or steps * per)]
        elif len(times) != count:
            raise VaExportError(
                f"{len(times)} timestamps for {count} frames", where="timestamps", fix="give one for each frame"
            )
        last = len(times) - 1
        return [(times[min(step * per, last)] + times[min(step * per + per - 1, last)]) / 2 for step in range(steps)]

    def _apart(self, grids: Sequence[Grid]) -> list[tuple[int, Grid]]:
        """What stands together in the prompt, whole videos and images or single steps of them, and which it is of."""
        if self.step_template is None:
            return list(enumerate(grids))
        return [(number, (1, h, w)) for number, (t, h, w) in enumerate(grids) for _ in range(t)]

    def _patches(self, medium: Medium) -> tuple[npt.NDArray[np.float32], Grid]:
        given = [medium.pixels] if isinstance(medium, Image) else medium.frames
        frames = self._fitted(pictures(given), self.image_pixels if isinstance(medium, Image) else self.video_pixels)
        patches, (t, h, w) = to_patches(frames, self.patch_size, self.merge_size, self.frames_per_grid)
        by_channel = patches.reshape(t, h * w, _CHANNELS, -1)
        return normalise(by_channel, self.mean, self.std, channel_axis=2).reshape(patches.shape), (t, h, w)

    def _fitted(self, frames: Sequence[npt.NDArray[np.uint8]], pixels: tuple[int, int]) -> npt.NDArray[np.uint8]:
        sizes = {frame.shape[:2] for frame in frames}
        if len(sizes) > 1:
            (h, w), (other_h, other_w) = sorted(sizes)[:2]
            raise VaExportError(
                f"frames of one video have different sizes: {w} × {h} and {other_w} × {other_h}",
                where="frames",
                fix="bring them to one size, or give them as images",
            )
        (height, width), (least, most) = sizes.pop(), pixels
        height, width = fit_size(height, width, self._multiple, least, most)
        return resize(frames, height, width, self.resample)

    def _tokens(self, grid: Grid) -> int:
        return math.prod(grid) // self.merge_size**2

    def _in_tokens(self, grid: Grid) -> Grid:
        return grid[0], grid[1] // self.merge_size, grid[2] // self.merge_size

    def _is_placeholder(self, ids: Int64) -> npt.NDArray[np.bool_]:
        return np.isin(ids, (self.video_token_id, self.image_token_id))

    def _expanded(self, input_ids: Int64, grids: Sequence[Grid]) -> Int64:
        """With one placeholder for each visual token, where there is one for each video and image."""
        counts = [self._tokens(grid) for _, grid in self._apart(grids)]
        places = np.flatnonzero(self._is_placeholder(input_ids[0]))
        if len(places) != len(counts) or sum(counts) == len(places):
            return input_ids
        repeats = np.ones(input_ids.shape[1], np.int64)
        repeats[places] = counts
        return np.repeat(input_ids[0], repeats)[None]

    def _runs(self, input_ids: Int64, grids: Sequence[Grid], seconds: Sequence[float]) -> tuple[list[GridRun], Int64]:
        """Where the tokens of each video and image stand, and the placeholder of each.

        Raises:
            VaExportError: placeholders that the grids do not fill.
        """
        ids, grids = input_ids[0], [grid for _, grid in self._apart(grids)]
        places = np.flatnonzero(self._is_placeholder(ids))
        counts = [self._tokens(grid) for grid in grids]
        if len(places) != sum(counts):
            raise VaExportError(
                f"the prompt has {len(places)} placeholders (ids {self.video_token_id} and {self.image_token_id}); "
                + (f"the grids give {sum(counts)} visual tokens" if grids else "there are no videos or images"),
                where="generate",
                fix="put one placeholder into the prompt for each visual token, or one for each video and image"
                if grids
                else "give pixel_values and grid_thw, or leave the placeholders out",
            )
        runs: list[GridRun] = []
        kinds, left, first = [], list(seconds), 0
        for grid, count in zip(grids, counts, strict=True):
            mine = places[first : first + count]
            kind = ids[mine[0]]
            if mine[-1] - mine[0] + 1 != count or (ids[mine] != kind).any():
                raise VaExportError(
                    f"the {count} tokens of grid {' × '.join(map(str, grid))} do not stand together in the prompt",
                    where="generate",
                    fix="keep the placeholders of one video or image together, in the order of grid_thw",
                )
            is_video = kind == self.video_token_id
            if is_video and seconds and not left:
                raise VaExportError(
                    f"{len(seconds)} values for more videos", where=_SECONDS, fix="give one for each video"
                )
            runs.append(
                GridRun(
                    int(mine[0]),
                    self._in_tokens(grid),
                    (left.pop(0) if left else self.seconds_per_grid) if is_video else 0.0,
                )
            )
            kinds.append(int(kind))
            first += count
        if left:
            raise VaExportError(
                f"{len(seconds)} values for {len(seconds) - len(left)} videos",
                where=_SECONDS,
                fix="give one for each video",
            )
        return runs, np.array(kinds, np.int64)

    def _prepared(self, input_ids: Int64, grids: Sequence[Grid], given: Mapping[str, npt.NDArray[Any]]) -> Prepared:
        runs, kinds = self._runs(input_ids, grids, given.get(_SECONDS, np.zeros(0)).reshape(-1).tolist())
        # With videos and images in one prompt the official code anchors the videos alone (its second mask wins).
        scored = self.video_token_id if (kinds == self.video_token_id).any() else self.image_token_id
        of_scored = {number for (number, _), kind in zip(self._apart(grids), kinds, strict=True) if kind == scored}
        positions, following = grid_positions(input_ids.shape[1], runs, self.tokens_per_second)
        return Prepared(
            vision_inputs=self._vision_inputs(given[_PIXELS], grids) if grids else {},
            input_ids=input_ids,
            is_visual=self._is_placeholder(input_ids),
            is_scored=(input_ids == scored) if grids else np.zeros(input_ids.shape, np.bool_),
            position_ids=positions,
            next_position=following,
            grid=self._in_tokens(grids[of_scored.pop()]) if len(of_scored) == 1 else None,
        )

    def _vision_inputs(self, patches: npt.NDArray[Any], grids: Sequence[Grid]) -> dict[str, npt.NDArray[Any]]:
        window = None if self.window_size is None else self.window_size // self._multiple
        return {
            _PIXELS: patches.reshape(-1, self.merge_size**2, patches.shape[1]),
            **tower_inputs(grids, self.merge_size, window, self.position_side),
        }


def _as_grids(array: npt.NDArray[Any]) -> list[Grid]:
    return [(int(t), int(h), int(w)) for t, h, w in array]
