"""What the first bytes of a packet say: whether the decoder may start at it, and whether it holds one picture.

A reader of packets may start at a packet only if no picture that is shown later builds on an earlier one, and may leave
packets out only if nothing in them counts for later ones. The flags of containers say neither. So there is a reader for
those codecs alone whose own words can be had from a few bytes:

    H.264    IDR, or a recovery point that is exact at once (ITU-T H.264, 7.4.1.2.4 and D.2.8)
    HEVC     IDR and CRA (ITU-T H.265, 7.4.2.2); pictures that lead a CRA are shown before it
    VP8, VP9, AV1    key frames that are shown (RFC 6386, 9.1; VP9 specification, 6.2; AV1 specification, 5.9.2)
    Motion JPEG, ProRes    every picture, with its tables
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Data = bytes | memoryview
# True: the decoder may start here; False: one picture that builds on others; None: neither, so nothing may be left out.
Head = Callable[[Data], bool | None]

_ANNEX_B = b"\0\0\1"
_SLICE, _IDR, _SEI, _RECOVERY_POINT = 1, 5, 6, 6
_TEMPORAL_UNIT, _SEQUENCE, _FRAME_HEADERS = 2, 1, {3, 6}


def head_reader(codec: str, extradata: bytes) -> Head | None:
    """The reader for a codec, by FFmpeg's name; None if there is none.

    Args:
        extradata: what the container says of the stream; parameter sets that a packet brings must stand there too.
    """
    match codec:
        case "h264" | "hevc":
            judge, length_at = (_h264, 4) if codec == "h264" else (_hevc, 21)
            # avcC and hvcC begin with 1, and packets then hold lengths; else both hold start codes (Annex B).
            is_cut = extradata[:1] == b"\1" and len(extradata) > length_at
            length = (extradata[length_at] & 3) + 1 if is_cut else 0
            return _safe(lambda data: judge(_units(data, length), extradata))
        case "vp8":
            return _safe(_vp8)
        case "vp9":
            return _safe(_vp9)
        case "av1":
            return _safe(_av1)
        case "mjpeg":
            return _safe(_mjpeg)
        case "prores":
            return _safe(lambda data: True if data[4:8] == b"icpf" else None)
    return None


def _safe(head: Head) -> Head:
    def read(data: Data) -> bool | None:
        try:
            return head(data)
        except (IndexError, ValueError):  # shorter than it says
            return None

    return read


def _units(data: Data, length: int) -> Iterator[Data]:
    """NAL units: their lengths stand before them, in so many bytes, or with 0 start codes."""
    if not length:
        before, *units = bytes(data).split(_ANNEX_B)
        if before.strip(b"\0"):
            raise ValueError
        yield from units
        return
    at = 0
    while at < len(data):
        start = at + length
        at = start + int.from_bytes(data[at:start], "big")
        if not start < at <= len(data):
            raise ValueError
        yield data[start:at]


def _h264(units: Iterator[Data], extradata: bytes) -> bool | None:
    recovers = False
    picture = None
    for unit in units:
        kind = unit[0] & 31
        if unit[0] & 0x80 or kind in (2, 3, 4):  # damaged; slices in partitions
            return None
        if kind in (_SLICE, _IDR):
            picture = kind
        elif kind == _SEI:
            recovers |= _is_exact_recovery(bytes(unit))
        elif kind in (7, 8, 13, 15) and bytes(unit).rstrip(b"\0") not in extradata:
            return None
    return None if picture is None else recovers or picture == _IDR


def _is_exact_recovery(unit: bytes) -> bool:
    """Whether an SEI unit says that this picture and all that are shown after it come out exactly."""
    payload, at = unit.replace(b"\0\0\3", b"\0\0"), 1
    while at + 2 < len(payload):
        kind_and_size = [0, 0]
        for place in (0, 1):
            while payload[at] == 255:
                kind_and_size[place] += 255
                at += 1
            kind_and_size[place] += payload[at]
            at += 1
        kind, size = kind_and_size
        if kind == _RECOVERY_POINT:  # recovery_frame_cnt of 0, in Exp-Golomb one bit, and exact_match_flag
            return payload[at] & 0xC0 == 0xC0
        at += size
    return False


def _hevc(units: Iterator[Data], extradata: bytes) -> bool | None:
    picture = None
    for unit in units:
        kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
        # After broken links and ends of sequences pictures are left out that the packets hold.
        if unit[0] & 0x80 or kind in (16, 17, 18, 36, 37):
            return None
        if kind < 32 and not layer:
            picture = kind
        elif kind in (32, 33, 34) and bytes(unit).rstrip(b"\0") not in extradata:
            return None
    return None if picture is None else picture in (19, 20, 21)


def _vp8(data: Data) -> bool | None:
    is_key, is_shown = not data[0] & 1, data[0] & 0x10
    if not is_shown or (is_key and data[3:6] != b"\x9d\1\x2a"):
        return None
    return is_key


def _vp9(data: Data) -> bool | None:
    frames, last = [data], data[-1]
    if last & 0xE0 == 0xC0:  # a superframe: sizes of its frames stand at its end
        count, width = (last & 7) + 1, (last >> 3 & 3) + 1
        index = data[-2 - count * width :]
        if len(index) == 2 + count * width and index[0] == last:
            frames, at = [], 0
            for number in range(count):
                size = int.from_bytes(index[1 + number * width : 1 + (number + 1) * width], "little")
                frames.append(data[at : at + size])
                at += size
    heads = [_vp9_head(frame) for frame in frames]
    if sum(is_shown for _, is_shown in heads) != 1:
        return None
    return heads[0] == (True, True)


def _vp9_head(frame: Data) -> tuple[bool, bool]:
    """Whether it is a key frame, and whether it is shown."""
    first = frame[0]
    if first & 0xC0 != 0x80:
        raise ValueError
    bits = first if first & 0x30 == 0x30 else first >> 1  # profile 3 has a reserved bit more
    shows_an_earlier_one, is_no_key, is_shown = bits & 4, bits & 2, bits & 1
    return not shows_an_earlier_one and not is_no_key, bool(shows_an_earlier_one or is_shown)


def _av1(data: Data) -> bool | None:
    at, has_sequence, picture = 0, False, None
    while at < len(data):
        header = data[at]
        if header & 0x80:
            return None
        kind = header >> 3 & 15
        at += 2 if header & 4 else 1
        size = len(data) - at
        if header & 2:
            size = shift = 0
            while True:  # leb128
                size |= (data[at] & 0x7F) << shift
                shift += 7
                at += 1
                if not data[at - 1] & 0x80:
                    break
        if at + size > len(data):
            return None
        if kind == _SEQUENCE:
            has_sequence = True
        elif kind in _FRAME_HEADERS and picture is None:
            picture = data[at]
        at += size
    # show_existing_frame 0, frame_type KEY_FRAME, show_frame 1
    return None if picture is None else has_sequence and picture & 0xF0 == 0x10


def _mjpeg(data: Data) -> bool | None:
    head = bytes(data[: 1 << 12])
    return True if head[:2] == b"\xff\xd8" and b"\xff\xdb" in head and b"\xff\xc4" in head else None
