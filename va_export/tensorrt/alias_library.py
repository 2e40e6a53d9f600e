"""Make a loaded shared library answer to a second name, on Linux.

A program that calls `dlopen("libfoo.so")` finds no `libfoo.so.1` that is already in the process, because
glibc compares the bare name with the SONAMEs of what is loaded. The cure is a shared object of a few hundred
bytes whose
SONAME is the wanted name and whose only dependency is the loaded file: a symbol looked up in it is found in
the dependency. It holds no code, so it is written here byte by byte and needs no compiler (System V ABI,
ELF-64).
"""

from __future__ import annotations

import ctypes
import platform
import struct
import tempfile
from pathlib import Path

_MACHINES = {"x86_64": 62, "aarch64": 183}  # ELF e_machine
_HEADER_SIZE, _PROGRAM_HEADER_SIZE, _SYMBOL_SIZE, _DYNAMIC_SIZE = 64, 56, 24, 16
_PT_LOAD, _PT_DYNAMIC, _READ_WRITE, _ET_DYN = 1, 2, 6, 3
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = (
    0,
    1,
    4,
    5,
    6,
    10,
    11,
    14,
)


def alias_loaded_library(library: Path, alias: str) -> None:
    """Let `dlopen(alias)` in this process find `library`, which is already loaded.

    Args:
        library: absolute path under which the library was loaded.
        alias: the bare file name to answer to, e.g. `libfoo.so`.

    Raises:
        OSError: the loader refused the alias, or the machine is neither x86_64 nor aarch64.
    """
    with tempfile.TemporaryDirectory(prefix="va-export-") as directory:
        path = Path(directory) / alias
        path.write_bytes(alias_library_bytes(alias, str(library)))
        # The mapping outlives the file, and ctypes never unloads: the directory can go at once.
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def alias_library_bytes(soname: str, needed: str, machine: str | None = None) -> bytes:
    """An ELF-64 shared object with SONAME `soname` that depends on `needed` and defines no symbol."""
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no library alias can be written for a machine of type {machine}")
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    symbols = _HEADER_SIZE + 2 * _PROGRAM_HEADER_SIZE
    hash_table = symbols + _SYMBOL_SIZE
    dynamic = hash_table + 24
    entries = [
        (_DT_SONAME, 1),
        (_DT_NEEDED, 2 + len(soname.encode())),
        (_DT_HASH, hash_table),
        (_DT_SYMTAB, symbols),
        (_DT_SYMENT, _SYMBOL_SIZE),
        (_DT_STRSZ, len(strings)),
    ]
    dynamic_bytes = _DYNAMIC_SIZE * (len(entries) + 2)  # with the two added below
    entries += [(_DT_STRTAB, dynamic + dynamic_bytes), (_DT_NULL, 0)]
    size = dynamic + dynamic_bytes + len(strings)

    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bit, little endian, version 1
        *(_ET_DYN, _MACHINES[machine], 1, 0, _HEADER_SIZE, 0, 0),
        *(_HEADER_SIZE, _PROGRAM_HEADER_SIZE, 2, 0, 0, 0),
    )
    # One read-write segment of the whole file: the loader relocates addresses inside the dynamic section.
    load = struct.pack("<IIQQQQQQ", _PT_LOAD, _READ_WRITE, 0, 0, 0, size, size, 0x10000)
    dynamic_header = struct.pack(
        "<IIQQQQQQ", _PT_DYNAMIC, _READ_WRITE, dynamic, dynamic, dynamic, dynamic_bytes, dynamic_bytes, 8
    )
    empty_hash = struct.pack("<IIII8x", 1, 1, 0, 0)  # one bucket, one chain: the undefined symbol
    table = b"".join(struct.pack("<QQ", tag, value) for tag, value in entries)
    return header + load + dynamic_header + bytes(_SYMBOL_SIZE) + empty_hash + table + strings
