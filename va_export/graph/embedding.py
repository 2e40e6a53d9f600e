"""Token embedding with the visual tokens put in their places."""

from __future__ import annotations

from typing import Any

import torch


class EmbeddingGraph(torch.nn.Module):
    """Ids (B, S), which of them are image placeholders (B, S) and visual tokens (N, D) → embeddings (B, S, D) float32.

    The k-th placeholder, counted through the batch row by row, takes visual token k. Text-only steps pass any one
    row of visual tokens, which is then not read. Where visual tokens have features for the decoder's first layers
    behind them, D is the width of all, and text has zeros there. Which id is the placeholder is the host's knowledge,
    not the graph's: a checkpoint without tokenizer files does not tell.
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(self, input_ids: torch.Tensor, is_visual: torch.Tensor, visual_tokens: torch.Tensor) -> torch.Tensor:
        embeddings = self.hf.get_input_embeddings()(input_ids).to(torch.float32)
        order = is_visual.reshape(-1).to(torch.int32).cumsum(0, dtype=torch.int32) - 1
        # Clamped: at text positions before the first placeholder the order is −1, and whatever is gathered is not used.
        order = order.clamp(min=0).to(torch.int64).reshape(input_ids.shape)
        visual = torch.nn.functional.embedding(order, visual_tokens)
        further = visual_tokens.shape[1] - embeddings.shape[2]
        if further:
            embeddings = torch.nn.functional.pad(embeddings, (0, further))
        return torch.where(is_visual[..., None], visual, embeddings)
