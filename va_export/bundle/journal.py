"""What an unfinished export has already done, one JSON record a line, each on the disk before the next step begins.

A record is appended only after the data that it speaks of was flushed, so whatever the journal says holds after a kill
and after a power failure. A last line that was torn is dropped when the journal is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from va_export.documents import Form, convert, encode, parse
from va_export.errors import VaExportError


class Record(Form, frozen=True, tag_field="kind", omit_defaults=True):
    """A record; each kind is a class of its own, with a `tag` that the file names it by, beside whoever writes it."""


R = TypeVar("R", bound=Record)


class Journal:
    """An append-only list of records in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[Any] = []  # as they were read; what is asked for is read as its form
        self._records: dict[type[Record], list[Any]] = {}
        if path.exists():
            self._lines = self._read()

    def __len__(self) -> int:
        return len(self._lines)

    def of(self, kind: type[R], **fields: Any) -> list[R]:
        """The records of one kind whose fields have these values, oldest first.

        Raises:
            VaExportError: one of them has another form, as one of another va-export may.
        """
        if kind not in self._records:
            tag = kind.__struct_config__.tag
            self._records[kind] = [self._as(kind, line) for line in self._lines if line["kind"] == tag]
        records: list[R] = self._records[kind]
        return [record for record in records if all(getattr(record, name) == fields[name] for name in fields)]

    def append(self, record: Record) -> None:
        """Write a record and flush it to the disk."""
        earlier = self.of(type(record))
        with self.path.open("ab") as stream:
            stream.write(encode(record, indent=None))
            stream.flush()
            os.fsync(stream.fileno())
        if not self._lines:
            sync_folder(self.path.parent)
        self._lines.append({"kind": record.__struct_config__.tag})
        self._records[type(record)] = [*earlier, record]

    def _as(self, kind: type[R], line: Any) -> R:
        fix = "remove this folder, which starts the export anew"
        return convert(line, kind, what="the journal of an unfinished export", where=self.path, fix=fix)

    def _read(self) -> list[Any]:
        """All whole lines that are records; a torn end is cut off."""
        content = self.path.read_bytes()
        lines: list[Any] = []
        end = 0
        for line in content.splitlines(keepends=True):
            try:
                record = parse(line, what="the journal", where=self.path, fix="")
            except VaExportError:  # blocks of zeros after a power failure too
                break
            if not line.endswith(b"\n") or not isinstance(record, dict) or "kind" not in record:
                break
            lines.append(record)
            end += len(line)
        if end < len(content):
            os.truncate(self.path, end)
        return lines


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
