"""What settings of families whose pictures keep their sizes have alike: ids, positions on three axes, the tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec

from va_export.checkpoint.special_tokens import TokenId
from va_export.errors import VaExportError
from va_export.models.decoder_config import DecoderConfig, Layers, Size, Small, Theta, invalid
from va_export.models.family import TextShape
from va_export.models.patch_shape import PatchShape

Channel = Annotated[float, msgspec.Meta(gt=0, le=1)]


class PreprocessorFile(msgspec.Struct, frozen=True, kw_only=True):
    """What every preprocessor's file says; a family gives the published defaults.

    Attributes:
        resample: Pillow's number of the filter: 2 is bilinear, 3 bicubic.
    """

    patch_size: Small
    temporal_patch_size: Small = 2
    merge_size: Small = 2
    image_mean: tuple[Channel, Channel, Channel]
    image_std: tuple[Channel, Channel, Channel]
    resample: Literal[2, 3] = 3

    @property
    def filter(self) -> Literal["bicubic", "bilinear"]:
        """The filter's name."""
        return "bicubic" if self.resample == 3 else "bilinear"


class MediaIds(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of what stands for videos and images in a prompt, and whether the head is the embedding."""

    image_token_id: TokenId
    video_token_id: TokenId
    vision_start_token_id: TokenId
    vision_end_token_id: TokenId | None = None
    tie_word_embeddings: bool = False

    @property
    def ids(self) -> dict[str, int | None]:
        """Key → id."""
        keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {key: getattr(self, key) for key in keys}


class TowerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`vision_config`: a tower over patches."""

    depth: Layers
    hidden_size: Size
    intermediate_size: Size
    num_heads: Size
    out_hidden_size: Size
    patch_size: Small
    spatial_merge_size: Small
    temporal_patch_size: Small
    in_channels: Literal[3] = 3


class Rope(msgspec.Struct, frozen=True):
    """`rope_scaling`, or `rope_parameters` as transformers 5 calls it."""

    type: str | None = None
    rope_type: str | None = None
    rope_theta: Theta | None = None
    mrope_section: list[Size] | None = None
    mrope_interleaved: bool | None = None


class Roped(Protocol):
    """A decoder's settings with rotary tables."""

    @property
    def rope_scaling(self) -> Rope | None:
        """As files on the Hub have it."""

    @property
    def rope_parameters(self) -> Rope | None:
        """As transformers 5 writes it."""


def ropes(llm: Roped) -> dict[str, Rope]:
    """Key → table, of those that are there."""
    tables = {"rope_scaling": llm.rope_scaling, "rope_parameters": llm.rope_parameters}
    return {key: rope for key, rope in tables.items() if rope is not None}


def mrope_section(tables: Mapping[str, Rope], head_dim: int, prefix: str = "") -> list[int]:
    """How many frequencies turn by time, row and column.

    Raises:
        VaExportError: no table says it, two say different things, or the parts do not make half a head.
    """
    sections = []
    for key, rope in tables.items():
        if others := {rope.type, rope.rope_type} - {"mrope", "default", None}:
            raise invalid(f"{key} is of type {others.pop()!r}; only 'mrope' is supported", f"{prefix}{key}")
        if rope.mrope_section is not None:
            sections.append((f"{prefix}{key}.mrope_section", rope.mrope_section))
    if not sections or any(section != sections[0][1] for _, section in sections):
        raise invalid(
            "mrope_section is missing, or said twice in different ways", f"{prefix}rope_scaling.mrope_section"
        )
    place, section = sections[0]
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise invalid(f"mrope_section {section} does not cut half of head_dim {head_dim} in three", place)
    return section


def check_tower(vit: TowerConfig, text: TextShape, max_pixels: int | None) -> None:
    """Hold a tower's sizes against each other, the decoder's and the user's limit.

    Raises:
        VaExportError: they do not fit.
    """
    if vit.hidden_size % vit.num_heads or vit.hidden_size // vit.num_heads % 4:
        raise invalid(
            f"hidden_size {vit.hidden_size} does not divide into {vit.num_heads} heads that rows and columns can turn",
            "vision_config.num_heads",
        )
    if vit.out_hidden_size != text.hidden_size:
        raise invalid(
            f"out_hidden_size {vit.out_hidden_size} is not the decoder's hidden_size {text.hidden_size}",
            "vision_config.out_hidden_size",
        )
    side = vit.patch_size * vit.spatial_merge_size
    if max_pixels is not None and max_pixels < side**2:
        raise VaExportError(
            f"{max_pixels} pixels are less than one token of {side} × {side}",
            where="--max-pixels",
            fix=f"use at least {side**2}",
        )


def patch_sizes(vit: TowerConfig, video_pixels: int, image_pixels: int) -> dict[str, Any]:
    """`PatchShape`'s arguments.

    Args:
        video_pixels, image_pixels: of a picture after it is resized, at the most.
    """
    return {
        "hidden_size": vit.hidden_size,
        "num_layers": vit.depth,
        "num_heads": vit.num_heads,
        "intermediate_size": vit.intermediate_size,
        "positions_per_frame": -(-video_pixels // vit.patch_size**2 // vit.temporal_patch_size),
        "patch_size": vit.patch_size,
        "merge_size": vit.spatial_merge_size,
        "frames_per_grid": vit.temporal_patch_size,
        "video_pixels": video_pixels,
        "image_pixels": image_pixels,
    }


def tower_settings(vision: PatchShape, out_hidden_size: int) -> dict[str, Any]:
    """What Hugging Face's configurations of such towers have alike."""
    return {
        "depth": vision.num_layers,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_heads": vision.num_heads,
        "in_channels": 3,
        "out_hidden_size": out_hidden_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.frames_per_grid,
    }


def text_settings(text: TextShape, llm: DecoderConfig) -> dict[str, Any]:
    """What Hugging Face's configurations of the decoders behind them have alike."""
    return {
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "bos_token_id": llm.bos_token_id,
        "eos_token_id": llm.eos_token_id,
    }
