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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.export.source import Source
from va_export.models.streaming import StreamedModel
from va_export.proof.vision import run_vision
from va_export.runtime.processing import Prepared

Array = npt.NDArray[Any]
Gains = tuple[torch.Tensor, torch.Tensor]


class StreamedReference:
    """Computes what `WholeReference` computes, with the same modules in the same order.

    Args:
        on_step: called with (steps done, steps in all): a layer of a token is a step.
    """

    def __init__(self, source: Source, on_step: Callable[[int, int], None] | None, new_tokens: int) -> None:
        with torch.device("meta"):
            model = source.family.build_model(source.spec)
        self._source = source
        self._stream = StreamedModel(model, source.weight_map, source.checkpoint)
        self._model = self._stream.model
        self._decoder = self._model.model.language_model
        self._on_step, self._done, self._steps = on_step, 0, new_tokens * len(self._decoder.layers)
        self._caches: list[Any] = []
        self._next_position = 0

    def visual_tokens(self, vision_inputs: Mapping[str, Array]) -> torch.Tensor:
        """(N, D) float32."""
        with self._stream.streamed(self._model.model):
            return run_vision(self._source, self._model, vision_inputs)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        return self._stream.embed(input_ids)

    def prefill(self, embeds: torch.Tensor, prepared: Prepared, sides: Sequence[Gains | None]) -> Array:
        """(sides, vocab) logits of the prompt's last position."""
        from transformers import DynamicCache

        self._caches = [DynamicCache(config=self._model.config.text_config) for _ in sides]
        self._next_position = prepared.next_position
        gains = [{} if side is None else {"key_log_gain": side[0], "value_gain": side[1]} for side in sides]
        return self._forward([embeds] * len(sides), torch.from_numpy(prepared.position_ids), gains)

    def step(self, tokens: npt.NDArray[np.int64]) -> Array:
        """Feed a token a side; (sides, vocab)."""
        embeds = [self.embed(torch.tensor([[int(token)]])) for token in tokens]
        logits = self._forward(embeds, torch.tensor([[[self._next_position]]]), [{}] * len(tokens))
        self._next_position += 1
        return logits

    def _forward(
        self, embeds: Sequence[torch.Tensor], position_ids: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> Array:
        hidden = list(embeds)
        positions = position_ids[0] if len(position_ids) == 1 else position_ids
        position_embeddings = self._decoder.rotary_emb(hidden[0], position_ids=positions)
        for layer in self._decoder.layers:
            with self._stream.resident(layer):
                for side, cache in enumerate(self._caches):
                    hidden[side] = layer(
                        hidden[side],
                        attention_mask=None,  # causal: the anchored attention knows it from the lengths
                        position_embeddings=position_embeddings,
                        position_ids=positions,
                        past_key_values=cache,
                        use_cache=True,
                        **gains[side],
                    )
            self._done += 1
            if self._on_step is not None:
                self._on_step(self._done, self._steps)
        with self._stream.resident(self._decoder.norm, self._model.lm_head):
            rows = [self._model.lm_head(self._decoder.norm(state)[:, -1])[0].float().numpy() for state in hidden]
        return np.stack(rows)
