"""A golden prompt asked twice: the second time, the keys and values up to its last visual token are those kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from va_export.runtime.bundle import Bundle
from va_export.runtime.decoding import Row, Wish
from va_export.runtime.generation import Encoded
from va_export.runtime.prefix import shared_length
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import GREEDY, TokenChoice

Array = np.ndarray[Any, Any]


def asked_twice(
    opened: Bundle, input_ids: Array, given: Mapping[str, Array], gains: tuple[Array, Array], tokens: Array
) -> Array:
    """(T, vocab) logits of the second time, `tokens` fed; the first time nothing was there to be found."""
    prepared = opened.processing.prepare_ids(input_ids, given, opened.limits.max_frames)
    seen = opened.encoder.see(prepared, is_scored=False, clock=StageClock(opened.backend))
    encoded = Encoded(prepared, seen.visual, None, gains)
    wish = Wish(TokenChoice(GREEDY, ()), len(tokens), (), tokens, keeps_logits=True)
    rows = []
    for _ in range(2):
        rows.append(Row())
        list(opened.decoding.tokens(encoded, wish, StageClock(opened.backend), rows[-1], seen=seen.digest))
    assert [row.reused for row in rows] == [0, shared_length(prepared)] and rows[1].reused > 0
    assert rows[1].reused == int(np.flatnonzero(prepared.is_visual[0])[-1]) + 1
    return np.stack(rows[1].logits)
