"""The reader on bytes laid out by hand; on real engines it is tested in test_build.py."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from refusals import refused

from va_export.tensorrt.inspect_engine import find_plugin_records


def _string(text: str) -> bytes:
    size = struct.pack("<Q", len(text))
    return b"\x13\x80\x01\x00" + size + b"\x01\x80\x0c\x80\x01\x00" + size + text.encode()


def _int32(number: int) -> bytes:
    return b"\x07\x80\x01\x00" + struct.pack("<i", number)


def _field(name: str, kind: str, data: bytes) -> bytes:
    blob = b"\x01\x80\x03\x80\x01\x00" + struct.pack("<Q", len(data)) + data
    return _string(name) + _int32(1) + _string(kind) + blob


HEAD = _string("AnchoredAttention") + _string("1") + _string("ai.videoanchor")
FIELDS = _field("scale", "FP32", struct.pack("<f", 0.125)) + _field("is_causal", "INT32", struct.pack("<i", 1))
RECORD = HEAD + _int32(2) + FIELDS + _string("V3ONE")


def _find(path: Path, content: bytes):  # type: ignore[no-untyped-def]
    path.write_bytes(content)
    return find_plugin_records(path, "AnchoredAttention", "1", "ai.videoanchor")


def test_records_are_found_with_their_fields(tmp_path: Path) -> None:
    records = _find(tmp_path / "e", bytes(1000) + RECORD + bytes(50) + RECORD)
    assert len(records) == 2
    assert records[0].fields == {"scale": (0.125,), "is_causal": (1,)}
    content = (tmp_path / "e").read_bytes()
    assert all(content[r.offset :].startswith(b"AnchoredAttention") for r in records)


@pytest.mark.parametrize(
    "content",
    [
        b"AnchoredAttention ai.videoanchor 1",  # the names alone, as in a debug string
        _string("AnchoredAttention") + _string("2") + _string("ai.videoanchor"),
        _string("AnchoredAttention") + _string("1") + _string("someone.else"),
        _string("AnchoredAttention") + bytes(100) + _string("1") + _string("ai.videoanchor"),
        _string("OtherAnchoredAttention") + _string("1") + _string("ai.videoanchor"),
    ],
)
def test_what_is_no_record_does_not_count(tmp_path: Path, content: bytes) -> None:
    assert _find(tmp_path / "e", content) == ()


def test_a_record_of_unknown_layout_counts_without_fields(tmp_path: Path) -> None:
    (record,) = _find(tmp_path / "e", HEAD + b"\xff" * 40)
    assert record.fields == {}


def test_a_truncated_record_counts_without_fields(tmp_path: Path) -> None:
    (record,) = _find(tmp_path / "e", RECORD[: len(HEAD) + 60])
    assert record.fields == {}


def test_no_engine_is_an_error(tmp_path: Path) -> None:
    with refused(tmp_path / "none", fix=False):
        find_plugin_records(tmp_path / "none", "A", "1", "n")
    with refused(tmp_path / "empty", fix=False):
        _find(tmp_path / "empty", b"")
