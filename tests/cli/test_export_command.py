"""va-export: the plan, the notes, and libraries that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, va_export

REPOSITORY = Path(__file__).parents[2]


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    outcome = va_export(*TINY, "-o", tmp_path / "parent" / "b", "--dry-run")
    assert outcome.code == 0 and outcome.stderr == ""
    lines = outcome.stdout.splitlines()
    assert any("onnx/decoder.onnx.data" in line and "KB" in line for line in lines)
    assert any(line.startswith("disk ") and "free" in line for line in lines)
    assert any(line.startswith("peak memory ") and "GB" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"temporary"}
    assert not list((tmp_path / "temporary").iterdir())


def test_dry_run_finds_an_output_that_exists(tiny_bundle: Path) -> None:
    va_export(*TINY, "-o", tiny_bundle, "--dry-run").refuses(tiny_bundle)


def test_without_tensorrt_onnx_is_written_and_the_extra_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("va_export.export.build_engines.available_flavors", lambda: ())
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "none.so"))  # nor a plugin library
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--components", "embedding")
    assert outcome.code == 0, outcome.stderr
    assert "No TensorRT is installed, so only ONNX is written" in outcome.stderr
    assert "va-export[rtx]" in outcome.stderr
    assert (tmp_path / "b" / "onnx" / "embedding.onnx").is_file() and not (tmp_path / "b" / "engines").exists()
    assert outcome.stdout.strip() == str(tmp_path / "b")


def test_targets_without_tensorrt_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("va_export.export.build_engines.available_flavors", lambda: ())
    monkeypatch.setattr("va_export.tensorrt.api._is_installed", lambda _: False)
    monkeypatch.setattr("va_export.tensorrt.api._LOADED", {})
    va_export(*TINY, "-o", tmp_path / "b", "--target", "sm89").refuses("tensorrt_rtx")
    assert not list(tmp_path.iterdir())


def blocked(command: str, *modules: str) -> str:
    """Python code that runs a command with those modules not installed."""
    return f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocker())
from va_export.cli.{command} import main
main()
"""


def test_without_pytorch_the_extra_is_named(tmp_path: Path) -> None:
    code = blocked("export", "torch", "transformers")
    command = [sys.executable, "-c", code, *TINY, "-o", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "torch, transformers" in done.stderr and "va-export[export]" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bundle_needs_neither_pytorch_nor_transformers(tiny_bundle: Path, clip: Path, command: str) -> None:
    code = blocked(command, "torch", "transformers", "onnxscript", "safetensors", "huggingface_hub", "jinja2")
    arguments = {
        "run": ["--video", str(clip), "--prompt", "What moves?", "--max-new-tokens", "4"],
        "check": ["--latency-iterations", "0", "--json"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle), *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if command == "check":
        assert json.loads(done.stdout)["passed"] is True


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--onnx-only", "--components", "embedding")
    assert "\x1b" not in outcome.stderr and "\r" not in outcome.stderr
    names = [line.split(maxsplit=1)[1].split("  ")[0] for line in outcome.stderr.splitlines() if line[0] == "✓"]
    assert names[:2] == ["open checkpoint", "export embedding"] and names[-1] == "seal bundle"


def test_the_output_is_named_after_model_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = va_export(*TINY, "--precision", "fp32", "--onnx-only", "--components", "embedding")
    assert outcome.code == 0 and [path.name for path in tmp_path.iterdir()] == ["internvl2-tiny-fp32"]


@pytest.mark.parametrize("command", ["export", "run", "check"])
def test_version_and_help(command: str) -> None:
    from va_export._version import __version__

    code = f"from va_export.cli.{command} import main; main()"
    for option, expected in (("--version", f"va-export {__version__}\n"), ("--help", "Usage")):
        done = subprocess.run(
            [sys.executable, "-c", code, option],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 and expected in done.stdout and done.stderr == ""
