"""What an unfinished export has already done, one JSON record a line, each on the disk before the next step begins.

A record is appended only after the data that it speaks of was flushed, so whatever the journal says holds after a kill
and after a power failure. A last line that was torn is dropped when the journal is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


class Journal:
    """An append-only list of records in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: list[Record] = []
        if path.exists():
            self._records = self._read()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def of(self, kind: str, **fields: Any) -> list[Record]:
        """The records of one kind whose fields have these values, oldest first."""
        return [
            record
            for record in self._records
            if record["kind"] == kind and all(record.get(name) == value for name, value in fields.items())
        ]

    def append(self, kind: str, **fields: Any) -> None:
        """Write a record and flush it to the disk."""
        record = {"kind": kind, **fields}
        with self.path.open("ab") as stream:
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if not self._records:
            sync_folder(self.path.parent)
        self._records.append(record)

    def _read(self) -> list[Record]:
        """All whole records; a torn end is cut off."""
        content = self.path.read_bytes()
        records: list[Record] = []
        end = 0
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:  # UnicodeDecodeError too: blocks of zeros after a power failure
                break
            if not line.endswith(b"\n") or not isinstance(record, dict) or "kind" not in record:
                break
            records.append(record)
            end += len(line)
        if end < len(content):
            os.truncate(self.path, end)
        return records


def sync_folder(directory: Path) -> None:
    """Flush a folder's list of names, which new files and renames are only part of afterwards."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
