"""What the families' tiny random checkpoints share: uniform weights, and a tokenizer of single bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from va_export.models.family import WeightSource

BYTES = 256

# Ends of the names that checkpoints of all families give to weights of one role.
_NORMS = ("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight", "mlp1.0.weight")
_LAYER_SCALES = (".ls1", ".ls2")
_POSITIONS = ("position_embedding", "position_embedding.weight")
_EMBEDDINGS = ("tok_embeddings.weight", "embed_tokens.weight", "pos_embed.weight", "class_embedding", "image_newline")
_LOOKED_UP = ("qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
_HEADS = ("output.weight", "lm_head.weight")


def write_weights(directory: Path, sources: Iterable[WeightSource], seed: int) -> None:
    """Write model.safetensors, every tensor that `sources` name random float32; the same bytes for the same seed."""
    shapes = {source.checkpoint_name: source.checkpoint_shape for source in sources}
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = {name: _random_weight(name, shapes[name], generator) for name in sorted(shapes)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _random_weight(name: str, shape: Sequence[int], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Uniform values around `centre` with standard deviation `spread`, both by the weight's role, so that activations
    keep their size and attention is far from uniform."""
    centre, spread = 0.0, 1.0 / math.sqrt(math.prod(shape[1:]) or 1)  # keeps a unit variance through a linear layer
    if name.endswith(_NORMS):
        centre, spread = 1.0, 0.1
    elif name.endswith(_LAYER_SCALES):
        centre, spread = 0.5, 0.1
    elif name.endswith("bias"):
        spread = 0.1
    elif name.endswith(_POSITIONS):
        spread = 0.3
    elif name.endswith(_EMBEDDINGS):
        spread = 1.0
    elif name.endswith(_LOOKED_UP):
        spread *= 1.6  # logits of a few units, so that attention picks keys out
    elif name.endswith(_HEADS):
        spread *= 2.0  # probabilities far from uniform, no ties between greedy tokens
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
