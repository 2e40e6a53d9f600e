"""Some changed files of every kind, from a fixed seed: each is taken or refused. `scripts/fuzz.py` runs more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_kinds import KINDS
from fuzz_run import FuzzLog

from va_export.documents import read

REPOSITORY = Path(__file__).parents[2]
CASES = 6


def test_changed_files_are_taken_or_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """In a process of its own, which imports what it forks with and has no threads."""
    log = tmp_path / "fuzz.json"
    command = [sys.executable, "scripts/fuzz.py", "--cases", str(CASES), "--seed", "1", "--bundle", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--finds", str(tmp_path / "finds"), "--evidence", str(log)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [path.read_text(encoding="utf-8") for path in (tmp_path / "finds").rglob("find.txt")]
    assert done.returncode == 0 and not found, "\n".join([done.stdout, done.stderr, *found])
    rows = read(log, FuzzLog, what="the log", fix="").kinds
    assert {row.kind for row in rows} == set(KINDS)
    assert all(row.cases == CASES for row in rows)
    assert sum(row.accepted for row in rows) > 20 and sum(row.refused for row in rows) > 100


def _in_a_fork(body: str) -> tuple[str, str]:
    """How a case ends whose code this is: kind and what."""
    program = f"""
import sys
sys.path[:0] = {[str(REPOSITORY / "tests" / "fuzz")]!r}
from fork_case import Bounds, run_case
from va_export.errors import VaExportError
def case():
    import os, signal, threading, time
    {body}
end = run_case(case, Bounds(memory=1 << 28, cpu_seconds=1, wall_seconds=20.0))
print(end.kind, end.what, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kind, _, what = done.stdout.strip().partition("|")
    return kind, what


@pytest.mark.parametrize(
    ("body", "kind", "what"),
    [
        ("pass", "accepted", ""),
        ("raise VaExportError('no', where='x')", "refused", ""),
        ("{}['x']", "find", "KeyError in nothing of the package"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "find", "SIGSEGV in nothing of the package"),
        ("os._exit(5)", "find", "exit code 5 in nothing of the package"),
        ("print('x')", "find", "wrote to standard output"),
        ("bytearray(1 << 29)", "find", "MemoryError in nothing of the package"),
        ("while True: pass", "find", "more CPU time than allowed in nothing of the package"),
        ("raise SystemExit(0)", "find", "SystemExit in nothing of the package"),
    ],
)
def test_an_end_that_is_not_allowed_is_found(body: str, kind: str, what: str) -> None:
    assert _in_a_fork(body) == (kind, what)


def test_the_committed_log_is_of_every_kind_and_without_finds() -> None:
    path = REPOSITORY / "engines" / "evidence" / "fuzz" / "log.json"
    if not path.is_file():
        pytest.skip("no whole run was committed yet")
    rows = read(path, FuzzLog, what="the log", fix="run scripts/fuzz.py again").kinds
    assert {row.kind for row in rows} == set(KINDS)
    total, refused = (sum(getattr(row, name) for row in rows) for name in ("cases", "refused"))
    assert all(row.cases >= 1000 and not row.finds for row in rows) and total >= 20_000
    said = f"Of {total:,} damaged files of {len(rows)} kinds {refused:,} were refused by name".replace(",", " ")
    assert said in (REPOSITORY / "README.md").read_text(encoding="utf-8")
