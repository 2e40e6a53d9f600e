"""One change to bytes of which nothing is known, or only that boxes with lengths lie in them (MP4, EBML)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Mutator = Callable[[random.Random, bytes], bytes]
INTEGERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
_LONGEST_PIECE = 64
# A box of MP4 and its kin: 4 bytes of length, big-endian, that count the 8 of length and name too.
_BOX = re.compile(rb"[a-zA-Z0-9 ]{4}")


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, overwrite, insert, take out, repeat or cut off."""
    if not content:
        return rng.randbytes(rng.randint(1, _LONGEST_PIECE))
    at = rng.randrange(len(content))
    if rng.random() < 0.5:  # most formats say what they are at their start
        at = min(at, rng.randrange(4096))
    stop = min(len(content), at + rng.randint(1, _LONGEST_PIECE))
    match rng.randrange(8):
        case 0:
            middle, stop = bytes([content[at] ^ 1 << rng.randrange(8)]), at + 1
        case 1:
            middle = rng.randbytes(stop - at)
        case 2:
            middle, stop = rng.randbytes(rng.randint(1, _LONGEST_PIECE)), at
        case 3:
            middle = b""
        case 4:
            middle = content[at:stop] * rng.choice((2, 3, 40))
        case 5:
            return content[:at]
        case 6:
            size = rng.choice((1, 2, 4, 8))
            order = rng.choice(("little", "big"))
            number = rng.choice(INTEGERS) % (1 << 8 * size)
            middle, stop = number.to_bytes(size, order), at + size  # type: ignore[arg-type]
        case _:
            other = rng.randrange(len(content))
            middle = content[other : other + stop - at]
    return content[:at] + middle + content[stop:]


def change_boxes(rng: random.Random, content: bytes) -> bytes:
    """A box's length, name or content, or a whole box twice or not at all; other bytes where there is no box."""
    boxes = [
        (found.start() - 4, size)
        for found in _BOX.finditer(content)
        if found.start() >= 4
        and 8 <= (size := int.from_bytes(content[found.start() - 4 : found.start()], "big")) <= len(content)
    ]
    if not boxes or rng.random() < 0.4:
        return change_bytes(rng, content)
    start, size = rng.choice(boxes)
    box, after = content[start : start + size], content[start + size :]
    match rng.randrange(5):
        case 0:
            number = rng.choice((*INTEGERS, size - 1, size + 1, size + 8, size // 2)) % (1 << 32)
            box = number.to_bytes(4, "big") + box[4:]
        case 1:
            box = box[:4] + rng.choice((b"free", b"moov", b"trak", b"\0\0\0\0", box[4:7] + b"_")) + box[8:]
        case 2:
            box = b""
        case 3:
            box = box * 2
        case _:
            box = box[:8] + change_bytes(rng, box[8:])
    return content[:start] + box + after
