"""Which kernels to take on this GPU: those that a test on it has shown right and fast, the plain ones else.

    kernels = take_proven_kernels(library, device, shape, (DECODE, PREFILL))   # before the first launch

VA_EXPORT_SELFTEST: `0` tests nothing and keeps plain kernels and the host's score, `again` tests although it is known,
a path is the record of another machine with the same GPU, driver and library; `1`, the default, tests once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from va_export.documents import convert, encode
from va_export.errors import VaExportError
from va_export.machine import nvidia_driver
from va_export.native import kernels, load_library
from va_export.native.device import Identity, identify
from va_export.native.kernels import DECODE, PREFILL, PRODUCTS, SIMPLE, Phase
from va_export.native.selftest.documents import Asked, AttentionShape, Finding, Record
from va_export.native.selftest.store import locked, read_shipped
from va_export.native.selftest.worker import event

VARIABLE = "VA_EXPORT_SELFTEST"
SECONDS_A_KERNEL = 60.0  # after which it hangs: a right one takes below a second, the first one's start included
_FORMAT = 1  # of the key: raise it when the checks change
_KNOWN_BEFORE = "tested before"
_LOG = logging.getLogger("va_export.selftest")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from va_export.native.selftest.worker import main; main()"
)
# What few machines have and nobody has run yet comes last.
_ORDER = (
    *((phase, SIMPLE) for phase in (DECODE, PREFILL, PRODUCTS)),
    *((DECODE, "mma_sync"), (PREFILL, "mma_sync"), (PRODUCTS, "tensor_core"), (PREFILL, "tensor_core")),
)
_LOCK = threading.Lock()
_PROVEN: dict[str, Record] = {}  # by key: what this process knows
_TAKEN: dict[tuple[Path, int], list[Record]] = {}  # what holds for everything that runs in this process


@dataclass(frozen=True)
class ProvenKernels:
    """What launches take now.

    Attributes:
        choice: kernel by phase.
        score_passed: whether the score's kernels may be used; the host's solver else.
        line: what was chosen and why, in one line.
    """

    choice: dict[str, str]
    score_passed: bool
    line: str


def take_proven_kernels(
    path: Path,
    device: int,
    shape: AttentionShape,
    phases: Sequence[Phase] = kernels.PHASES,
    seconds: float = SECONDS_A_KERNEL,
) -> ProvenKernels:
    """Test the library's kernels on a GPU, unless that is known, and let this process's launches take what passed.

    Where several models run in one process, a launch takes a kernel only if it was chosen for all of them.

    Args:
        path: of the library.
        phases: that will be used.
        seconds: that testing one kernel may take.

    Raises:
        VaExportError: no such GPU, the plain kernel itself is wrong on it, or VA_EXPORT_SELFTEST is none of the above.
    """
    kernels.refuse_unknown_kernels()
    library = load_library(path)
    if not hasattr(library, "va_kernels_select"):
        return ProvenKernels({}, False, f"{path} is older than the self-test: its plain kernels, the score on the host")
    kernels.bind(library)
    mode = os.environ.get(VARIABLE) or "1"
    if mode == "0":
        return _told(library, device, Record({}), phases, f"no self-test ({VARIABLE}=0)")
    gpu = identify(path, device)
    key = _key(path, gpu, shape)
    with _LOCK:
        record, why = _record(path, device, shape, phases, key, mode, seconds)
        _refuse_broken(record, phases, gpu)
        _TAKEN.setdefault((path, device), []).append(record)
        for phase in phases:
            choices = {taken.choice(phase) for taken in _TAKEN[path, device] if taken.of(phase)}
            kernels.select_kernel(library, device, phase, choices.pop() if len(choices) == 1 else SIMPLE)
    told = _told(library, device, record, phases, f"{gpu.name}, {why}")
    _LOG.log(logging.INFO if why == _KNOWN_BEFORE else logging.WARNING, "%s", told.line)
    return told


def _record(
    path: Path,
    device: int,
    shape: AttentionShape,
    phases: Sequence[Phase],
    key: dict[str, str | int],
    mode: str,
    seconds: float,
) -> tuple[Record, str]:
    if mode not in ("1", "again"):
        return _shipped(Path(mode), key), f"by {mode}"
    digest = json.dumps(key, sort_keys=True)
    missing = functools.partial(_missing, path, device, phases, shape)
    if mode == "1" and digest in _PROVEN and not missing(_PROVEN[digest]):
        return _PROVEN[digest], _KNOWN_BEFORE
    with locked(key) as store:
        known = Record(key) if mode == "again" else store.load()
        if known is None or known.key != key:
            known = Record(key)
        if known.running is not None:
            # Who tested it is dead, for we hold its lock, and maybe the machine was: it is not tried again.
            known = _stopped(known)
            store.save(known)
        if not (todo := missing(known)):
            _PROVEN[digest] = known
            return known, _KNOWN_BEFORE
        start = time.monotonic()
        record = _test(path, device, shape, known, todo, store.save, seconds)
        if record.findings:
            _PROVEN[digest] = record
        return record, f"tested in {time.monotonic() - start:.1f} s"


def _missing(
    path: Path, device: int, phases: Sequence[Phase], shape: AttentionShape, record: Record
) -> list[tuple[str, str]]:
    """Phases and kernels of which nothing is known, in the order of risk; none after one that ended the test itself."""
    library, known = load_library(path), {(finding.phase, finding.kernel) for finding in record.findings}
    offered = {phase: kernels.kernels_of(library, device, phase) for phase in phases}
    if shape.dtype == "float32":  # which the plain kernel alone computes
        offered = {phase: names if phase == PRODUCTS else names[:1] for phase, names in offered.items()}
    return [
        (phase.name, kernel)
        for phase, kernel in _ORDER
        if kernel in offered.get(phase, ()) and (phase.name, kernel) not in known
    ]


def _stopped(record: Record) -> Record:
    assert record.running is not None
    phase, kernel = record.running
    fault = "the test of it did not end: the process or the machine was stopped"
    finding = Finding(phase, kernel, fault=fault, is_known=False)
    return replace(record, findings=(*record.findings, finding), running=None)


def _test(
    path: Path,
    device: int,
    shape: AttentionShape,
    record: Record,
    todo: list[tuple[str, str]],
    save: Callable[[Record], None],
    seconds: float,
) -> Record:
    """Test kernels in processes of their own, a further one after each that crashed or hung."""
    if str(path).startswith("/proc/self/"):  # a sealed copy, which another process finds under this one's number
        path = Path(f"/proc/{os.getpid()}", path.relative_to("/proc/self"))
    while todo:
        child = _Child(Asked(str(path), device, shape, tuple(todo)), seconds)
        try:
            while message := child.next():
                if "unavailable" in message:
                    _LOG.warning("the kernels cannot be tested now, and the plain ones are taken: %s", message)
                    return record
                if "running" in message:
                    phase, kernel = message["running"]
                    record = replace(record, running=(phase, kernel))
                else:
                    finding = convert(message["found"], Finding, what="what was found", where="self-test", fix="report")
                    record = replace(record, findings=(*record.findings, finding), running=None)
                save(record)
            if record.running is not None:
                finding = Finding(*record.running, fault=child.end())
                record = replace(record, findings=(*record.findings, finding), running=None)
                save(record)
        except BaseException:  # the user's interrupt says nothing of the kernel
            save(replace(record, running=None))
            raise
        finally:
            child.kill()
        left = [entry for entry in todo if entry not in {(found.phase, found.kernel) for found in record.findings}]
        if left == todo:  # it ended before it began
            _LOG.warning("the kernels cannot be tested, and the plain ones are taken: %s", child.end())
            return record
        todo = left
    return record


class _Child:
    """A process that tests kernels."""

    def __init__(self, asked: Asked, seconds: float) -> None:
        self._seconds, self._hangs = seconds, False
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(encode(asked))
        self._process.stdin.close()
        self._rest = b""

    def next(self) -> dict[str, Any] | None:
        """The next message; None when it has ended, or hangs."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._hangs = True
                return None
            if not (read := os.read(self._process.stdout.fileno(), 1 << 16)):
                return None
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return event(line)

    def end(self) -> str:
        """How it ended, after `next` gave None."""
        if self._hangs:
            return f"it hangs: no result within {self._seconds:g} s"
        code = self._process.wait()
        self._printed.seek(0)
        last = self._printed.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        return f"its process ended with {how}" + (f": {last[0][:200]}" if last else "")

    def kill(self) -> None:
        """It is gone afterwards."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._printed.close()


def _key(path: Path, gpu: Identity, shape: AttentionShape) -> dict[str, str | int]:
    """What a record holds for; the tuned length and the capacity decide no kernel's rightness."""
    return {
        "format": _FORMAT,
        "gpu": gpu.uuid,
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "sm_count": gpu.sm_count,
        "driver": nvidia_driver() or gpu.cuda_version,
        "library": _sha256(path),
        "dtype": shape.dtype,
        "head_dim": shape.head_dim,
        "value_head_dim": shape.value_head_dim,
        "group": shape.query_heads // shape.kv_heads,
    }


@functools.cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shipped(path: Path, key: dict[str, str | int]) -> Record:
    if not path.is_absolute() and not path.is_file():
        raise VaExportError(
            f"{VARIABLE} is {str(path)!r}", where=VARIABLE, fix="set it to 0, 1, again, or the path of a record"
        )
    record = read_shipped(path)
    if other := sorted(name for name in key if name != "gpu" and record.key.get(name) != key[name]):
        said = ", ".join(f"{name} {record.key.get(name)!r}, here {key[name]!r}" for name in other)
        raise VaExportError(
            f"this self-test's record is of another machine: {said}", where=path, fix=f"set {VARIABLE}=1 to test here"
        )
    return record


def _refuse_broken(record: Record, phases: Sequence[Phase], gpu: Identity) -> None:
    """The plain kernel is what is left when others fail; where it fails too, every answer would be wrong."""
    for phase in phases:
        faults = [f"{finding.kernel}: {finding.fault}" for finding in record.of(phase) if finding.is_known]
        if phase != PRODUCTS and faults and not record.passed(phase):
            raise VaExportError(
                f"no kernel for the {phase.name} of attention is right on this {gpu.name}: {'; '.join(faults)}",
                where="self-test",
                fix=f"report this, please; export with --attention native, or set {VARIABLE}=again to test once more",
            )


def _told(library: ctypes.CDLL, device: int, record: Record, phases: Sequence[Phase], why: str) -> ProvenKernels:
    choice = {phase.name: kernels.selected_kernel(library, device, phase) for phase in phases}
    parts = []
    for phase in phases:
        reasons = [_reason(finding) for finding in record.of(phase)]
        by = f" by {phase.variable}" if os.environ.get(phase.variable) else ""
        parts.append(f"{phase.name} {choice[phase.name]}{by}" + (f" ({', '.join(reasons)})" if reasons else ""))
    if PRODUCTS in phases and not record.passed(PRODUCTS):
        parts.append("the score on the host")
    return ProvenKernels(choice, record.passed(PRODUCTS), f"kernels on GPU {device} ({why}): {'; '.join(parts)}")


def _reason(finding: Finding) -> str:
    if finding.fault:
        return f"{finding.kernel} failed: {finding.fault[:160]}"
    return f"{finding.kernel} {finding.median * 1e3:.1f} us"
