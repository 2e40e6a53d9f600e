"""The memory that is left: a machine's, and a container's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from va_export.host_memory import available_memory

MACHINE = 8_000_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))


def control_group(folder: Path, names: tuple[str, str], limit: object, use: int, stat: str) -> None:
    folder.mkdir(parents=True)
    for name, content in zip((*names, "memory.stat"), (limit, use, stat), strict=True):
        (folder / name).write_text(f"{content}\n" if content else "")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")
STAT = "anon 700\nactive_file 30\ninactive_file 60\ntotal_active_file 3\ntotal_inactive_file 6"


def root_with(tmp_path: Path, groups: str) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    return tmp_path


def test_without_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == MACHINE


def test_a_container_with_a_limit(tmp_path: Path) -> None:
    """As it sees itself under version 2: its own group is the root. The page cache can be given back."""
    root = root_with(tmp_path, "0::/\n")
    control_group(root / "sys/fs/cgroup", V2, 10_000, 4_000, STAT)
    assert available_memory(root) == 10_000 - 4_000 + 90


def test_no_limit(tmp_path: Path) -> None:
    root = root_with(tmp_path, "0::/\n")
    control_group(root / "sys/fs/cgroup", V2, "max", 4_000, STAT)
    assert available_memory(root) == MACHINE


@pytest.mark.parametrize(("inner", "outer", "left"), [(10_000, "max", 9_000), (10_000, 5_000, 4_000)])
def test_a_service_under_a_limit_of_its_slices(tmp_path: Path, inner: int, outer: object, left: int) -> None:
    """The tightest of the groups around it counts."""
    root = root_with(tmp_path, "0::/user.slice/app.service\n")
    control_group(root / "sys/fs/cgroup/user.slice", V2, outer, 1_000, "")
    control_group(root / "sys/fs/cgroup/user.slice/app.service", V2, inner, 1_000, "")
    assert available_memory(root) == left


@pytest.mark.parametrize("place", ["docker/1f0c", ""])  # as the host sees it; as the container does
def test_version_1(tmp_path: Path, place: str) -> None:
    root = root_with(tmp_path, "12:cpu,cpuacct:/docker/1f0c\n9:memory:/docker/1f0c\n1:name=systemd:/docker/1f0c\n")
    control_group(root / "sys/fs/cgroup/memory" / place, V1, 10_000, 4_000, STAT)
    assert available_memory(root) == 10_000 - 4_000 + 9


def test_more_in_use_than_the_limit_is_nothing_left(tmp_path: Path) -> None:
    root = root_with(tmp_path, "0::/\n")
    control_group(root / "sys/fs/cgroup", V2, 1_000, 4_000, "")
    assert available_memory(root) == 0


def test_here_it_is_a_possible_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0 < available_memory() <= psutil.virtual_memory().total
