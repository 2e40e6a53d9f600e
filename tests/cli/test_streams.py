"""Standard streams as callers leave them, text that is none, signals, and the line of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import va_check, va_run

BIN = Path(sys.executable).parent


def shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, the arguments as $1, $2, …, the commands on the PATH."""
    variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    words = ["bash", "-c", line, "bash", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)]
    return subprocess.run(words, env=variables, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("columns", ["1", "2", "7", "0", "-3", "wide"])
def test_help_is_told_in_any_width(columns: str) -> None:
    done = shell("va-check --help", COLUMNS=columns)
    assert done.returncode == 0 and b"--backend" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "line", ["va-check --help", "va-export --help", "va-run --version", "va-check /no/where --json"]
)
def test_a_reader_that_has_gone_ends_it_quietly(line: str) -> None:
    """The pipe's other end is closed before the command starts: `| true` would sometimes come too late."""
    read, write = os.pipe()
    os.close(read)
    command, *arguments = line.split()
    done = subprocess.run([BIN / command, *arguments], stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(write)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert done.returncode == 141 or (done.returncode == 2 and b"no such bundle" in done.stderr)


def test_an_answer_whose_reader_has_gone(tiny_bundle: Path, clip: Path) -> None:
    asked = 'va-run "$1" --video "$2" --prompt "What moves?" --max-new-tokens 12'
    done = shell(f"{asked} | true; exit ${{PIPESTATUS[0]}}", tiny_bundle, clip)
    assert (done.returncode, done.stderr) == (141, b"")


def test_progress_whose_reader_has_gone(tiny_bundle: Path) -> None:
    """rich would end with 1, which means a failed parity."""
    read, write = os.pipe()
    os.close(read)
    command = [BIN / "va-check", tiny_bundle, "--latency-iterations", "0"]
    done = subprocess.run(command, stderr=write, stdout=subprocess.PIPE, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stdout) == (141, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    """And the next file that is opened does not get their number: what is printed would go into it."""
    done = shell(f'va-check "$1" -o "$1" {closed}', tmp_path)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert (b"no manifest" in done.stderr or b"may not be written into" in done.stderr) == ("2>" not in closed)
    assert not done.stdout
    assert shell(f"va-run --version {closed}").returncode == 0


def test_a_full_disk_below_standard_output() -> None:
    done = shell("va-export --help > /dev/full")
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 3


def test_characters_that_the_output_lacks(tiny_bundle: Path, clip: Path) -> None:
    """The same answer, with escapes where ASCII has no such character."""
    line = 'va-run "$1" --video "$2" --prompt "What moves?" --max-new-tokens 12'
    told = shell(line, tiny_bundle, clip, PYTHONIOENCODING="utf-8").stdout.decode()
    ascii_only = shell(line, tiny_bundle, clip, PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0, ascii_only.stderr
    assert ascii_only.stdout.decode("ascii") == told.encode("ascii", "backslashreplace").decode() != told


def test_a_path_that_is_no_text_comes_out_as_it_went_in(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/no\xff"
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([BIN / "va-check", name], env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
    done = subprocess.run([BIN / "va-run", "--video", b"v\xff", name], capture_output=True, timeout=120, check=False)
    assert done.returncode == 2 and b"--prompt" in done.stderr


@pytest.mark.parametrize("question", ["caf\udce9", "\ud800", "a\udcff"])
def test_a_question_that_is_no_text_is_refused_by_name(tiny_bundle: Path, clip: Path, question: str) -> None:
    outcome = va_run(tiny_bundle, "--video", clip, "--prompt", question, "--json")
    told = json.loads(outcome.stdout)["error"]
    assert (outcome.code, told["where"], told["exit_code"]) == (2, "--prompt", 2)


CODE = """
import os, signal, sys, time
from pathlib import Path
from va_export.cli.console import Result, run
def command(as_json: bool = False) -> Result:
    try:
        for number in map(int, os.environ["SIGNALS"].split()):
            os.kill(os.getpid(), number)
        time.sleep(30)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # again, while it cleans up
        Path(os.environ["CLEANED"]).touch()
    return Result()
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # both are inherited ignored below nohup, which the command keeps
run(command)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_clean_up_and_say_so_in_a_line(tmp_path: Path, name: str, code: int) -> None:
    environment = {"SIGNALS": str(int(signal.Signals[name])), "CLEANED": str(tmp_path / "cleaned")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **environment}, capture_output=True, text=True,
        cwd=Path(__file__).parents[2], timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "interrupted: nothing was left behind\n")
    assert (tmp_path / "cleaned").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # only a command's own process


def test_nohup_stays() -> None:
    line = "trap '' HUP; exec \"$1\" -c 'import os, signal; from va_export.cli.process import set_up_signals;"
    done = shell(f"{line} set_up_signals(); os.kill(os.getpid(), signal.SIGHUP); print(7)'", sys.executable)
    assert done.stdout == b"7\n", done.stderr


def test_a_terminal_that_was_hung_up(tmp_path: Path) -> None:
    """Nothing can be written there any more; the exit code and the cleaning up are as ever."""
    master, terminal = os.openpty()
    environment = {"SIGNALS": "", "CLEANED": str(tmp_path / "cleaned")}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.replace("time.sleep(30)", "print('here', flush=True); time.sleep(30)")],
        env={**os.environ, **environment}, stdin=terminal, stdout=terminal, stderr=terminal,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(terminal)
    assert os.read(master, 100).startswith(b"here")
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 129 and (tmp_path / "cleaned").exists()


def test_json_is_one_line_and_nothing_else(tiny_bundle: Path, clip: Path) -> None:
    """Also where a library prints with C's own stdio, which Python's redirection does not see."""
    code = (
        "import ctypes, os, sys\n"
        "from va_export.cli.console import AsJson, Result, run\n"
        "def command(as_json: AsJson = False) -> Result:\n"
        "    print('python'); ctypes.CDLL(None).puts(b'library'); os.system('echo child')\n"
        "    return Result({'answer': 'é'}, 1)\n"
        "run(command)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--json"], capture_output=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (done.returncode, json.loads(done.stdout), done.stdout.count(b"\n")) == (1, {"answer": "é"}, 1)
    assert all(word in done.stderr for word in (b"python", b"library", b"child"))
    asked = va_run(tiny_bundle, "--video", clip, "--prompt", "What moves?", "--max-new-tokens", 4, "--json")
    told = json.loads(asked.stdout)
    plain = va_run(tiny_bundle, "--video", clip, "--prompt", "What moves?", "--max-new-tokens", 4)
    assert told["answer"] + "\n" == plain.stdout and len(told["tokens"]) <= 4 and told["timings_ms"]["total"] > 0
    assert asked.stdout.count("\n") == 1


def test_a_check_for_people_is_one_line(tiny_bundle: Path) -> None:
    outcome = va_check(tiny_bundle, "--latency-iterations", 0)
    assert outcome.code == 0 and outcome.stdout.endswith(f": {tiny_bundle}\n") and outcome.stdout.count("\n") == 1
    assert outcome.stdout.startswith("parity passed on ONNX Runtime, ")


def test_check_output_is_refused_before_anything_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "x")
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "dangling"):
        outcome = va_check(tiny_bundle, "-o", place, "--json")
        assert json.loads(outcome.stdout)["error"]["where"] == str(place)
        assert "✓" not in outcome.stderr
