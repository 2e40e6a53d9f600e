"""How much memory this process can still take: the machine's, or its container's where that is less.

A container shows the whole machine's memory in /proc/meminfo, and its own limit in its control group alone. Formats:
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import psutil

_Version = tuple[str, str, tuple[str, str]]
# Of both versions of control groups: limit, use, the fields of memory.stat that are the page cache's part.
_V2: _Version = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1: _Version = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping.

    Args:
        root: where /proc and /sys lie.
    """
    available = int(psutil.virtual_memory().available)
    return min([available, *(_left_in_group(group, version) for group, version in _groups(root))])


def _groups(root: Path) -> list[tuple[Path, _Version]]:
    """Folders of this process's memory control group and of those around it, whichever can be seen; inside a container
    that is most often only its own, shown as the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    mounts = root / "sys/fs/cgroup"
    groups: list[tuple[Path, _Version]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, version = (mounts / "memory", _V1) if controllers else (mounts, _V2)
        relative = PurePosixPath(path.lstrip("/"))
        groups += [(mount / name, version) for name in (relative, *relative.parents)]
    return groups


def _left_in_group(group: Path, version: _Version) -> int:
    """Bytes below the limit, the page cache counted as free; without a limit, more than any machine has."""
    limit_file, use_file, cache_fields = version
    try:
        limit, use = (int((group / name).read_text(encoding="utf-8")) for name in (limit_file, use_file))
        rows = (line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        cache = sum(int(value) for field, value in rows if field in cache_fields)
    except (OSError, ValueError):  # "max", or no such group here
        return 1 << 62
    return max(0, limit - use + cache)
