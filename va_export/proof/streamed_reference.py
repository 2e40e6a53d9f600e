"""The reference model in the memory of one layer: weights are read from the checkpoint when a layer needs them.

All sides (with anchors and without) go through a layer while its weights are there, so the decoder is read once a
token. The tokens are the reference's own greedy choice, as in the whole model: each is known only when the one before
is, hence one pass over the weights a token. Forced tokens would let all steps share the prefill's pass, but then the
reference would no longer say what it answers, which the report shows beside the bundle's answer. What the passes cost
is the smaller part: at 8 billion parameters one reads 15 GB, which a disk or the page cache gives in a fraction of the
minutes that the prefill's arithmetic takes on a CPU. Measured with four layers of that width and 656 tokens on two busy
cores: the prefill of both sides 250 s, each later pass 35 s, anonymous memory 2.3 GB at its peak, where the weights in
float32 take 6.8 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.checkpoint.files import Checkpoint
from va_export.models.family import ModelFamily, ModelSpec
from va_export.models.streaming import StreamedModel

Array = npt.NDArray[Any]
Gains = tuple[torch.Tensor, torch.Tensor]


class StreamedReference:
    """Computes what `WholeReference` computes, with the same modules in the same order."""

    def __init__(self, family: ModelFamily, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        family.check_weights(spec, checkpoint)
        with torch.device("meta"):
            model = family.build_model(spec)
        self._stream = StreamedModel(model, family.weight_map(spec), checkpoint)
        self._model = self._stream.model

    def visual_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(F, 3, S, S) → (N, D)."""
        with self._stream.streamed(self._model.model):
            features = self._model.model.get_image_features(pixel_values, return_dict=True)
        tokens: torch.Tensor = features.pooler_output.flatten(0, 1).float()
        return tokens

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        return self._stream.embed(input_ids)

    def greedy(
        self,
        embeds: torch.Tensor,
        sides: Sequence[Gains | None],
        new_tokens: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[tuple[Array, Array]]:
        """As `WholeReference.greedy`; a step of `on_step` is one layer of one token."""
        from transformers import DynamicCache

        decoder = self._model.model.language_model
        n_layers = len(decoder.layers)
        caches = [DynamicCache(config=self._model.config.text_config) for _ in sides]
        hidden = [embeds for _ in sides]
        kwargs = [{} if gains is None else {"key_log_gain": gains[0], "value_gain": gains[1]} for gains in sides]
        tokens: list[list[int]] = [[] for _ in sides]
        rows: list[list[Array]] = [[] for _ in sides]
        for step in range(new_tokens):
            past = caches[0].get_seq_length()
            position_ids = torch.arange(past, past + hidden[0].shape[1])[None]
            position_embeddings = decoder.rotary_emb(hidden[0], position_ids=position_ids)
            for number, layer in enumerate(decoder.layers):
                with self._stream.resident(layer):
                    for side, cache in enumerate(caches):
                        hidden[side] = layer(
                            hidden[side],
                            attention_mask=None,  # causal: the anchored attention knows it from the lengths
                            position_embeddings=position_embeddings,
                            position_ids=position_ids,
                            past_key_values=cache,
                            use_cache=True,
                            **kwargs[side],
                        )
                if on_step is not None:
                    on_step(step * n_layers + number + 1, new_tokens * n_layers)
            with self._stream.resident(decoder.norm, self._model.lm_head):
                for side in range(len(sides)):
                    last = decoder.norm(hidden[side])[:, -1]
                    rows[side].append(self._model.lm_head(last)[0].float().numpy())
                    tokens[side].append(int(rows[side][-1].argmax()))
            hidden = [self.embed(torch.tensor([[chosen[-1]]])) for chosen in tokens]
            kwargs = [{} for _ in sides]
        return [(np.array(t, dtype=np.int64), np.stack(r)) for t, r in zip(tokens, rows, strict=True)]
