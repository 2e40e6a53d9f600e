"""Optimisation profiles: the ranges of shapes that an engine accepts, and the shapes it is tuned for.

Ranges are stated per symbolic dimension of the ONNX file (`frames`, `visual_count`, `batch`, `sequence`); a
profile gives every input its shapes from them. The cache's `capacity` has no range: TensorRT wants it static,
so it is written into the graph before parsing (see `prepare_onnx`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from va_export.documents import Form
from va_export.errors import VaExportError
from va_export.settings import Limits

CAPACITY = "capacity"


class ShapeRange(Form, frozen=True):
    """The smallest, the tuned and the largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = all(low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True))
        if not ordered or any(size < 0 for size in self.min):
            raise VaExportError(f"the shapes {self.min}, {self.opt}, {self.max} are not in ascending order")


class Profile(Form, frozen=True):
    """One optimisation profile: a range for every input that has a dynamic dimension."""

    name: str
    ranges: Mapping[str, ShapeRange]


class DimensionRange(Form, frozen=True):
    """The sizes of one symbolic dimension."""

    min: int
    opt: int
    max: int


def dimension_ranges(component: str, limits: Limits, tokens_per_frame: int) -> dict[str, dict[str, DimensionRange]]:
    """Profile name → symbolic dimension → range, for a component of a bundle.

    The decoder gets two profiles of one engine: `prefill` (any number of tokens) and `decode`, tuned for one token.
    Decode's range ends at two: where a profile holds one row of one token and nothing else, RTX stores every
    weight a second time in another layout (measured: the engine's size doubles); with a range it shares them.

    Raises:
        VaExportError: the limits contradict each other, or no component has that name.
    """
    check_limits(limits, tokens_per_frame)
    batch = DimensionRange(1, 1, limits.max_batch_size)
    sequence = DimensionRange(1, limits.opt_input_len, limits.max_input_len)
    decode = DimensionRange(1, 1, min(2, limits.max_input_len))
    match component:
        case "vision":
            return {"frames": {"frames": DimensionRange(1, limits.opt_frames, limits.max_frames)}}
        case "embedding":
            visual = DimensionRange(
                1,
                limits.opt_frames * tokens_per_frame,
                limits.max_frames * tokens_per_frame * limits.max_batch_size,
            )
            return {"tokens": {"batch": batch, "sequence": sequence, "visual_count": visual}}
        case "score":  # of one video
            tokens = [frames * tokens_per_frame for frames in (1, limits.opt_frames, limits.max_frames)]
            return {"tokens": {"visual_count": DimensionRange(*tokens)}}
        case "decoder":
            return {
                "prefill": {"batch": batch, "sequence": sequence},
                "decode": {"batch": batch, "sequence": decode},
            }
    raise VaExportError(f"no profiles are known for {component!r}", fix="use vision, embedding, score or decoder")


def check_limits(limits: Limits, tokens_per_frame: int) -> None:
    """The checks between limits that only profiles need; the others are made where `Limits` is built."""
    pairs = (("opt_input_len", "max_input_len"), ("opt_frames", "max_frames"))
    for smaller, larger in pairs:
        if getattr(limits, smaller) > getattr(limits, larger):
            raise VaExportError(
                f"{smaller} ({getattr(limits, smaller)}) is larger than {larger} ({getattr(limits, larger)})",
                where="limits",
            )
    if tokens_per_frame < 1:
        raise VaExportError(f"a frame must have at least one token, not {tokens_per_frame}", where="tokens_per_frame")
    if limits.max_frames * tokens_per_frame > limits.max_input_len:
        raise VaExportError(
            f"max_frames ({limits.max_frames}) times {tokens_per_frame} tokens a frame is "
            f"{limits.max_frames * tokens_per_frame}, more than max_input_len ({limits.max_input_len})",
            where="limits",
            fix="lower --max-frames or raise --max-input-len",
        )


def shape_profiles(
    input_shapes: Mapping[str, Sequence[int | str]], ranges: Mapping[str, Mapping[str, DimensionRange]]
) -> tuple[Profile, ...]:
    """Profiles for the inputs of one ONNX file.

    Args:
        input_shapes: per input its dimensions; a symbolic one by name.
        ranges: profile name → symbolic dimension → range, as from `dimension_ranges`.

    Returns:
        one profile a name, or none at all when every shape is static.

    Raises:
        VaExportError: an input has a symbolic dimension without a range.
    """
    dynamic = {name: shape for name, shape in input_shapes.items() if any(isinstance(d, str) for d in shape)}
    if not dynamic:
        return ()
    return tuple(
        Profile(profile, {name: _shape_range(name, shape, sizes) for name, shape in dynamic.items()})
        for profile, sizes in ranges.items()
    )


def _shape_range(name: str, shape: Sequence[int | str], sizes: Mapping[str, DimensionRange]) -> ShapeRange:
    if missing := [d for d in shape if isinstance(d, str) and d not in sizes]:
        raise VaExportError(
            f"input {name} has the dynamic dimension {missing[0]!r}, for which no range is known",
            fix=f"known dimensions: {', '.join(sizes)}",
        )

    def at(which: str) -> tuple[int, ...]:
        return tuple(getattr(sizes[d], which) if isinstance(d, str) else d for d in shape)

    return ShapeRange(at("min"), at("opt"), at("max"))
