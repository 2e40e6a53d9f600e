"""An engine built in a process of its own: the same result, and every way in which that process can end."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace
from refusals import refused
from synthetic_decoder import DecoderShape, save_decoder

from va_export.bundle.tensors import Profiles
from va_export.documents import encode
from va_export.errors import VaExportError
from va_export.tensorrt.api import LOG, TensorRT
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.build_process import build_in_process
from va_export.tensorrt.engine_info import BuildRequest


@pytest.fixture
def request_for(rtx: TensorRT, decoder_ranges: Profiles, capacity: int, tmp_path: Path) -> BuildRequest:
    """A decoder of one layer, to be built without a plugin."""
    path = save_decoder(DecoderShape(layers=1, head_dim=64, dtype="float16"), tmp_path / "decoder.onnx")
    return BuildRequest(path, "tensorrt-rtx", ("sm89",), decoder_ranges, "native", capacity)


# A build ends within milliseconds of its first word, and the one who listens may be slower than that: what is to die
# in the middle of its work gets work without an end.
ENDLESS = """
import sys, time
here = sys.path.pop(0)
del sys.modules[__name__]
import tensorrt_rtx
def build(builder, network, config):
    config.progress_monitor.phase_start("Building engine", None, 1)
    time.sleep(600)
tensorrt_rtx.Builder.build_serialized_network = build
sys.path.insert(0, here)
"""


@pytest.fixture
def endless(request_for: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildRequest:
    """A request whose build speaks once and then goes on for ten minutes."""
    folder = tmp_path / "stand_in"
    folder.mkdir()
    (folder / "tensorrt_rtx.py").write_text(ENDLESS)
    monkeypatch.syspath_prepend(folder)  # the child imports from where this process does; this one has imported it
    return request_for


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_it_builds_what_this_process_would(request_for: BuildRequest, plugin_library: Path, tmp_path: Path) -> None:
    request = replace(request_for, attention="plugin", plugin_library=plugin_library)
    calls: list[tuple[str, int, int]] = []
    info = build_in_process(request, tmp_path / "a.engine", lambda *call: calls.append(call))
    here = build_engine(request, tmp_path / "b.engine")
    assert info.peak_memory_bytes is not None and here.peak_memory_bytes is None
    assert replace(here, seconds=info.seconds, peak_memory_bytes=info.peak_memory_bytes) == info
    assert (tmp_path / "a.engine").stat().st_size == info.size_bytes
    # Its own peak, not this process's: PyTorch is not in it, and TensorRT is.
    assert 50 << 20 < info.peak_memory_bytes < 2 << 30
    building = [(done, total) for phase, done, total in calls if phase == "Building engine"]
    assert building[0][0] == 0 and building[-1][0] == building[-1][1] > 0
    assert children() == []


def test_log_and_refusals_come_through(
    request_for: BuildRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Turing has no float32 products in RTX: the builder fails after parsing.
    path = save_decoder(DecoderShape(layers=1, dtype="float32"), tmp_path / "single.onnx")
    request = replace(request_for, onnx_path=path, targets=("sm75",))
    with caplog.at_level(logging.INFO, LOG.name), refused(path, "FP32 GEMM", "sm75", fix=False):
        build_in_process(request, tmp_path / "d.engine")
    levels = {record.levelno for record in caplog.records if record.name == LOG.name}
    assert logging.ERROR in levels and logging.INFO in levels
    assert not (tmp_path / "d.engine").exists() and children() == []


def test_a_killed_build_is_told_as_want_of_memory(endless: BuildRequest, tmp_path: Path) -> None:
    def kill(*_: object) -> None:
        for child in children():
            child.kill()

    with refused(endless.onnx_path, "SIGKILL") as caught:
        build_in_process(endless, tmp_path / "d.engine", kill, memory_fix="cut it up")
    assert caught.value.fix == "cut it up"
    assert left(tmp_path) == ["decoder.onnx", "decoder.onnx.data"]


def test_another_death_is_named(endless: BuildRequest, tmp_path: Path) -> None:
    def abort(*_: object) -> None:
        for child in children():
            child.send_signal(signal.SIGABRT)

    with refused(endless.onnx_path, "SIGABRT"):
        build_in_process(endless, tmp_path / "d.engine", abort)


def test_an_interrupt_ends_the_build_and_leaves_nothing(endless: BuildRequest, tmp_path: Path) -> None:
    seen: list[psutil.Process] = []

    def interrupt(*_: object) -> None:
        seen.extend(children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_in_process(endless, tmp_path / "d.engine", interrupt)
    assert seen and not any(process.is_running() for process in seen)
    assert left(tmp_path) == ["decoder.onnx", "decoder.onnx.data"]


def test_the_build_dies_with_its_parent(endless: BuildRequest, tmp_path: Path) -> None:
    program = """
import json, os, psutil, signal, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[3])
from va_export.tensorrt.build_process import build_in_process
from va_export.documents import decode
from va_export.tensorrt.engine_info import BuildRequest
def die(*_):
    print(psutil.Process().children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
request = decode(sys.argv[1].encode(), BuildRequest, what="", where="", fix="")
build_in_process(request, Path(sys.argv[2]), die)
"""
    command = [sys.executable, "-c", program, encode(endless).decode(), str(tmp_path / "d.engine")]
    command.append(json.dumps(sys.path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    orphan = int(done.stdout)
    try:
        gone, alive = psutil.wait_procs([psutil.Process(orphan)], timeout=60)
    except psutil.NoSuchProcess:
        gone, alive = [orphan], []
    assert alive == [] or alive[0].status() == psutil.STATUS_ZOMBIE, gone
    assert not (tmp_path / "d.engine").exists()


def test_a_bug_in_the_child_keeps_its_traceback(
    request_for: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("1 / 0\n")  # the child imports from where this process does
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*ZeroDivisionError"):
        build_in_process(request_for, tmp_path / "d.engine")


def test_a_request_of_another_form_is_named(request_for: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(VaExportError) as caught:
        build_in_process(replace(request_for, targets=(89,)), tmp_path / "d.engine")
    assert caught.value.where == "request: request.targets[0]" and children() == []


def test_the_pipe_is_closed_whatever_happens(request_for: BuildRequest, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a pathlib iterator would count itself twice)

    with pytest.raises(VaExportError):
        build_in_process(replace(request_for, onnx_path=tmp_path / "none.onnx"), tmp_path / "d.engine")
    before = open_files()
    with refused(tmp_path / "none.onnx", fix=False):
        build_in_process(replace(request_for, onnx_path=tmp_path / "none.onnx"), tmp_path / "d.engine")
    assert open_files() == before
