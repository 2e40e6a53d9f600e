"""What the families' tiny random checkpoints share: a tokenizer of single bytes, and uniform weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BYTES = 256


def uniform(
    generator: np.random.Generator, shape: Sequence[int], centre: float, spread: float
) -> npt.NDArray[np.float32]:
    """Uniform numbers around `centre` with standard deviation `spread`."""
    bound = spread * math.sqrt(3.0)
    return (centre + generator.uniform(-bound, bound, shape)).astype(np.float32)


def write_byte_tokenizer(
    directory: Path, special_tokens: Sequence[str], *, bos_token: str | None, eos_token: str
) -> None:
    """Write a tokenizer of the 256 bytes and of special tokens, whose ids follow; any text can be asked with it and any
    output decoded.

    Args:
        bos_token: one of the special tokens, which starts every text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    if bos_token is not None:
        place = BYTES + list(special_tokens).index(bos_token)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, place)]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {str(BYTES + i): {"content": token, "special": True} for i, token in enumerate(special_tokens)}
    settings: dict[str, Any] = {"added_tokens_decoder": tokens, "eos_token": eos_token}
    write_json(
        directory / "tokenizer_config.json", settings if bos_token is None else {**settings, "bos_token": bos_token}
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object for people and programs; the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for bytes, in order: the byte if printable, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(BYTES)]
