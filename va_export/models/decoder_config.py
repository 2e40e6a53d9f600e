"""What the families' config.json say alike of a decoder: types and ranges of keys, and the checks between them.

Upper limits are far above any model; they keep a wrong number from being taken for a size and computed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

import msgspec

from va_export.checkpoint.special_tokens import TokenId, TokenIds, as_tuple
from va_export.errors import VaExportError
from va_export.models.family import Choices, DynamicNtkScaling, LongRopeScaling, TextShape

CONFIG = "config.json"

Layers = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Small = Annotated[int, msgspec.Meta(ge=1, le=1 << 10)]
Positions = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Epsilon = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Theta = Annotated[float, msgspec.Meta(gt=0, le=1e15)]


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that every decoder has, under Hugging Face's names."""

    hidden_act: Literal["silu"]
    hidden_size: Size
    intermediate_size: Size
    max_position_embeddings: Positions
    num_attention_heads: Size
    num_hidden_layers: Layers
    rms_norm_eps: Epsilon
    vocab_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    rope_theta: Theta | None = None
    tie_word_embeddings: bool | None = None
    layer_types: list[Literal["full_attention"]] | None = None

    @property
    def width_of_head(self) -> int:
        """head_dim, stated or not."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def text_shape(
    llm: DecoderConfig,
    choices: Choices,
    *,
    rope_theta: float,
    rope_scaling: DynamicNtkScaling | LongRopeScaling | None = None,
    prefix: str = "",
) -> TextShape:
    """The decoder's sizes, cut to the layers that were asked for.

    Args:
        prefix: where the keys lie in config.json, as `llm_config.`.

    Raises:
        VaExportError: sizes that do not make heads, or more layers than there are.
    """
    hidden, heads, layers = llm.hidden_size, llm.num_attention_heads, llm.num_hidden_layers
    kv_heads, head_dim = llm.num_key_value_heads or heads, llm.width_of_head
    if (llm.head_dim is None and hidden % heads) or heads % kv_heads or head_dim % 2:
        raise invalid(
            f"hidden_size {hidden}, {heads} attention heads and {kv_heads} key/value heads do not divide "
            "evenly into heads of even size",
            f"{prefix}num_attention_heads",
        )
    if choices.num_decoder_layers is not None and not 1 <= choices.num_decoder_layers <= layers:
        raise VaExportError(
            f"{choices.num_decoder_layers} decoder layers asked for, the checkpoint has {layers}",
            where="num_decoder_layers",
            fix=f"choose 1 to {layers}, or leave it out for all",
        )
    return TextShape(
        hidden_size=hidden,
        num_layers=choices.num_decoder_layers or layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=llm.intermediate_size,
        vocab_size=llm.vocab_size,
        max_position_embeddings=llm.max_position_embeddings,
        rms_norm_eps=llm.rms_norm_eps,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
    )


class RotaryTable(Protocol):
    """`rope_scaling` or `rope_parameters`: a table that may say the base frequency too."""

    @property
    def rope_theta(self) -> float | None:
        """The base frequency."""


def stated_theta(own: float | None, tables: Mapping[str, RotaryTable | None], prefix: str = "") -> float:
    """The rotary embedding's base frequency, wherever it stands; where it stands twice, both must say the same.

    Args:
        own: the key `rope_theta`.
        tables: key → table.

    Raises:
        VaExportError: none says it, or two say different things.
    """
    said = {"rope_theta": own, **{f"{key}.rope_theta": table.rope_theta for key, table in tables.items() if table}}
    stated = {place: theta for place, theta in said.items() if theta is not None}
    if not stated:
        raise invalid("rope_theta is missing", f"{prefix}rope_theta")
    if len(set(stated.values())) > 1:
        raise invalid(f"two base frequencies: {listed(stated)}", f"{prefix}rope_theta")
    return next(iter(stated.values()))


def check_in_vocabulary(name: str, number: int | None, vocab_size: int, where: str) -> None:
    """Hold a token's id against the vocabulary.

    Raises:
        VaExportError: it lies outside.
    """
    if number is not None and not 0 <= number < vocab_size:
        raise VaExportError(
            f"{name} {number} is outside the vocabulary of {vocab_size}",
            where=where,
            fix="take the configuration and the tokenizer's files from one checkpoint",
        )


def check_tokens(ids: Mapping[str, TokenIds], vocab_size: int) -> None:
    """`check_in_vocabulary` of what several keys of config.json say.

    Args:
        ids: dotted key → an id, several or none.
    """
    for key, said in ids.items():
        for number in as_tuple(said):
            check_in_vocabulary(key.rpartition(".")[2], number, vocab_size, f"{CONFIG}: {key}")


def refuse_another_placeholder(choices: Choices, stated: int) -> None:
    """For checkpoints that say which id a visual token's place has.

    Raises:
        VaExportError: the user said another.
    """
    if choices.image_token_id not in (None, stated):
        raise VaExportError(
            f"the placeholder is said to be {choices.image_token_id}, this checkpoint's is {stated}",
            where="image_token_id",
            fix="leave --image-token-id out: it is for checkpoints that do not tell",
        )


def refuse_max_pixels(choices: Choices) -> None:
    """For families whose frames all have one size.

    Raises:
        VaExportError: a limit was set.
    """
    if choices.max_pixels is not None:
        raise VaExportError(
            "every frame of this model becomes the same square: there is no limit to set on its pixels",
            where="--max-pixels",
            fix="leave --max-pixels out",
        )


def listed(said: Mapping[str, object]) -> str:
    """What several places say, in words."""
    return ", ".join(f"{value} in {place}" for place, value in said.items())


def invalid(what: str, path: str) -> VaExportError:
    """The error about the key of config.json at `path`, a dotted name."""
    return VaExportError(what, where=f"{CONFIG}: {path}", fix="use the checkpoint's original config.json")
