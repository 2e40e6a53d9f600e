"""Features of visual tokens that the decoder's first layers add (DeepStack, arXiv 2406.04334).

They travel behind the hidden states, so that no component's list of inputs depends on them. Adding the zeros that text
has there changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch


def split_features(states: torch.Tensor, hidden_size: int) -> tuple[torch.Tensor, ...]:
    """(…, (1 + n) · D) → hidden states (…, D), and what each of the next n layers adds."""
    return torch.split(states, hidden_size, dim=-1) if states.shape[-1] > hidden_size else (states,)


def arguments(embeds: torch.Tensor, hidden_size: int) -> dict[str, Any]:
    """What Hugging Face's decoders take of (1, S, (1 + n) · D) embeddings."""
    hidden_states, *features = split_features(embeds, hidden_size)
    if not features:
        return {"inputs_embeds": hidden_states}
    return {
        "inputs_embeds": hidden_states,
        "visual_pos_masks": torch.ones(hidden_states.shape[:2], dtype=torch.bool),
        "deepstack_visual_embeds": [each.flatten(0, 1) for each in features],
    }
