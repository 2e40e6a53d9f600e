"""What the package uses of TensorRT exists in full TensorRT 10.13, by the type stubs of it; and the check can fail."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TYPES = Path("tensorrt", "types.py")


@pytest.fixture(scope="module")
def stubs() -> str:
    try:
        return importlib.metadata.version("tensorrt-stubs")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed; scripts/check.sh installs it")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the files that the check reads."""
    for folder in ("tensorrt", "runtime"):
        shutil.copytree(REPOSITORY / "va_export" / folder, tmp_path / folder)
    return tmp_path


def check(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "check_tensorrt_api.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_everything_used_is_in_full_tensorrt(stubs: str) -> None:
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert stubs.startswith("10.13.")
    compared = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ok ")}
    assert compared >= {
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "ILogger.Severity.WARNING",
        "IExecutionContext.execute_async_v3",
        "OnnxParser",
        "get_plugin_registry",
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        (TYPES, "def node_name(self)", "def node_title(self)", "ParserError.node_title: no such member"),
        (
            TYPES,
            "def get_layer(self, index: int)",
            "def get_layer(self, number: int)",
            "INetworkDefinition.get_layer: takes (index), not (number)",
        ),
        (
            TYPES,
            "def execute_async_v3(self, stream_handle: int)",
            "def execute_async_v3(self)",
            "IExecutionContext.execute_async_v3: takes (stream_handle), not ()",
        ),
        (
            TYPES,
            "    progress_monitor: Any\n",
            "    def progress_monitor(self) -> Any: ...\n",
            "a method here and an attr",
        ),
        (TYPES, "class ParserError(", "class ParserFault(", "ParserFault: a protocol that PROTOCOLS does not name"),
        (TYPES, "    num_compute_capabilities: int\n", "", "num_compute_capabilities: listed in RTX_ONLY"),
        (
            Path("tensorrt", "build.py"),
            "BuilderFlag.TF32",
            "BuilderFlag.TF33",
            "BuilderFlag.TF33: BuilderFlag has no TF33",
        ),
        (
            Path("tensorrt", "build.py"),
            "api.module.OnnxParser",
            "api.module.Parser",
            "Parser: the module has no such name",
        ),
        (Path("tensorrt", "build_log.py"), "severity.VERBOSE", "severity.TRACE", "Severity has no TRACE"),
        (Path("tensorrt", "build_log.py"), "def phase_finish(", "def phase_end(", "IProgressMonitor: a derived class"),
        (Path("tensorrt", "engine_shapes.py"), "mode.INPUT", "mode.IN", "TensorIOMode has no IN"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_full_tensorrt_lacks_is_found(
    stubs: str, package: Path, file: Path, old: str, new: str, complaint: str
) -> None:
    source = (package / file).read_text()
    assert old in source
    (package / file).write_text(source.replace(old, new))
    done = check(package)
    assert done.returncode == 1
    assert complaint in done.stderr
