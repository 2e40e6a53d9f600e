"""AnchoredAttention from its definition, one row at a time, in float64 NumPy: the tests' truth."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def attention_by_loops(
    query: Array,
    key: Array,
    value: Array,
    key_log_gain: Array,
    value_gain: Array,
    kv_length: Array,
    *,
    scale: float,
    is_causal: bool,
    query_log_gain: Array | None = None,
) -> Array:
    """[B, Hq, Sq, Dv]; `query_log_gain` [B, Sq] is the paper's log γ_Q, added to every logit of a row."""
    batch, query_heads, q_len, _ = query.shape
    group = query_heads // key.shape[1]
    output = np.zeros((batch, query_heads, q_len, value.shape[3]))
    for b in range(batch):
        for h in range(query_heads):
            for i in range(q_len):
                last = kv_length[b] - 1
                if is_causal:
                    last = min(last, i + kv_length[b] - q_len)
                seen = [j for j in range(last + 1) if key_log_gain[b, j] > -np.inf]
                if not seen:
                    continue
                logits = [scale * query[b, h, i].dot(key[b, h // group, j]) + key_log_gain[b, j] for j in seen]
                if query_log_gain is not None:
                    logits = [logit + query_log_gain[b, i] for logit in logits]
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                for weight, j in zip(weights, seen, strict=True):
                    output[b, h, i] += weight * value_gain[b, j] * value[b, h // group, j]
    return output
