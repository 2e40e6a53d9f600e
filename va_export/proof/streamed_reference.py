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

from collections.abc import Mapping, Sequence

import torch

from va_export.anchor.hugging_face_cache import with_cache
from va_export.export.source import Source
from va_export.models.deepstack import split_features
from va_export.models.streaming import StreamedModel
from va_export.proof.reference_model import Array, OnStep, ReferenceModel


class StreamedReference(ReferenceModel):
    """What `WholeReference` computes, with the same modules in the same order. A layer of a token is a step."""

    def __init__(self, source: Source, on_step: OnStep | None, new_tokens: int) -> None:
        with torch.device("meta"):
            model = source.family.build_model(source.spec)
        self._stream = StreamedModel(model, source.weight_map, source.checkpoint)
        self._decoder = self._stream.model.model.language_model
        super().__init__(source, self._stream.model, on_step, steps=new_tokens * len(self._decoder.layers))

    def visual_tokens(self, vision_inputs: Mapping[str, Array]) -> torch.Tensor:
        """(N, D) float32."""
        with self._stream.streamed(self._model.model):
            return super().visual_tokens(vision_inputs)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        return self._stream.embed(input_ids)

    def _logits(
        self, embeds: Sequence[torch.Tensor], positions: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        width = self._decoder.config.hidden_size
        hidden, features = [], []
        for states in embeds:
            first, *further = split_features(states, width)
            hidden.append(first)
            features.append(further)
        position_embeddings = self._decoder.rotary_emb(hidden[0], position_ids=positions)
        for layer in self._decoder.layers:
            with self._stream.resident(layer):
                for side, cache in enumerate(self._caches):
                    hidden[side] = layer(
                        hidden[side],
                        attention_mask=None,  # causal: the anchored attention knows it from the lengths
                        position_embeddings=position_embeddings,
                        position_ids=positions,
                        use_cache=True,
                        **with_cache(layer, cache),
                        **gains[side],
                    )
                    if features[side]:
                        hidden[side] = hidden[side] + features[side].pop(0)
            self._count_step()
        with self._stream.resident(self._decoder.norm, self._model.lm_head):
            return [self._model.lm_head(self._decoder.norm(state)[:, -1]) for state in hidden]
