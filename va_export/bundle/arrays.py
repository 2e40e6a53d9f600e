"""Arrays from an .npz file that a stranger may have made: no pickles, and no more memory than such a file can need."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt
from numpy.lib import format as npy

from va_export.errors import VaExportError

_NAME = re.compile(r"([a-z_]\w*(?:\.[a-z_]+)?)\.npy")
_HEADER_BYTES = 10_000  # NumPy's own bound
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes


def read_arrays(path: Path, most_bytes: int | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name.

    Args:
        most_bytes: of all arrays together, unpacked; None for a file that was made here.

    Raises:
        VaExportError: no such archive, a name that is no array's or stands twice, objects (pickles), a header that
            says another size than the archive, or more than `most_bytes`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if most_bytes is not None and unpacked > most_bytes + _HEADER_BYTES * len(members):
                raise ValueError(f"its arrays take {unpacked} bytes; at the bundle's limits they take {most_bytes}")
            arrays: dict[str, npt.NDArray[Any]] = {}
            for member in members:
                match = _NAME.fullmatch(member.filename)
                if match is None or match[1] in arrays or member.compress_type not in _METHODS:
                    raise ValueError(f"{member.filename!r} is no member that such a file has, or stands twice")
                with archive.open(member) as stream:
                    _check_size(member, stream)
                with archive.open(member) as stream:
                    arrays[match[1]] = npy.read_array(stream, allow_pickle=False)
            return arrays
    except MemoryError:
        raise
    except Exception as error:  # of zip, zlib, a password, and of the Python that an array's header is written in
        raise VaExportError(
            f"the reference cannot be read: {error}", where=path, fix="export the bundle again"
        ) from error


def _check_size(member: zipfile.ZipInfo, stream: IO[bytes]) -> None:
    """Compare what an array's header announces with what its member holds, before memory is taken for it."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member.filename} has the format version {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject or stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{member.filename} announces {shape} of {dtype}, and has {member.file_size} bytes")
