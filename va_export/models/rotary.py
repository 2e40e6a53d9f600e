"""What the families' rotary embeddings share."""

from __future__ import annotations

import torch


def inverse_frequencies(base: float, width: int, device: torch.device) -> torch.Tensor:
    """base^(−2i/d) for i in [0, d/2), float32 [d/2], rounded as Hugging Face rounds it."""
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
