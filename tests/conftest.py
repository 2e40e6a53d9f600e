"""What tests of several folders share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from va_export.native.solver import LIBRARY_NAME, solver_library

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="session")
def solver_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libva_solver.so: the installed one, else built once, without CUDA."""
    installed = solver_library()
    if installed is not None:
        return installed
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip(f"no {LIBRARY_NAME} is installed, and no cmake and C++ compiler to build it")
    build = tmp_path_factory.mktemp("solver")
    configure = ["cmake", "-S", str(PLUGINS), "-B", str(build), "-DVA_EXPORT_CUDA=OFF"]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / LIBRARY_NAME
