"""The wheel, built as a user's pip builds it: what lies in it, and that it works away from the repository."""

from __future__ import annotations

import email
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from va_export._version import __version__

REPOSITORY = Path(__file__).parents[1]
DIST_INFO = f"va_export-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel without the CUDA library, whose compilation takes minutes; tests/plugins holds the built library."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if importlib.util.find_spec(
        "scikit_build_core"
    ):  # spares a download; otherwise pip fetches it into its own environment
        command.append("--no-build-isolation")
    environment = {**os.environ, "VA_EXPORT_SKIP_PLUGINS": "1"}
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(REPOSITORY)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    assert path.name == f"va_export-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_bytes(wheel.read(f"{DIST_INFO}/METADATA"))


def test_holds_the_package_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"va_export", DIST_INFO}
    files = (path.relative_to(REPOSITORY) for path in (REPOSITORY / "va_export").rglob("*") if path.is_file())
    sources = {path.as_posix() for path in files if "__pycache__" not in path.parts and path.suffix != ".so"}
    assert len(sources) > 50
    assert sources <= names
    assert {"va_export/py.typed", "va_export/report/template.html.j2", f"{DIST_INFO}/licenses/LICENSE"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".cu", ".cpp", ".npz", ".so"))]


def test_holds_every_recipe_unchanged(wheel: zipfile.ZipFile) -> None:
    recipes = sorted((REPOSITORY / "engines").glob("*.toml"))
    assert recipes
    packed = {f"va_export/recipes/{path.name}" for path in recipes}
    assert {name for name in wheel.namelist() if name.startswith("va_export/recipes/")} == packed
    for path in recipes:
        assert wheel.read(f"va_export/recipes/{path.name}") == path.read_bytes()


def test_metadata_says_what_pyproject_says(wheel: zipfile.ZipFile, metadata: Message) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) == set(project["optional-dependencies"])
    entry_points = wheel.read(f"{DIST_INFO}/entry_points.txt").decode()
    lines = {line.replace(" ", "") for line in entry_points.splitlines() if "=" in line}
    assert lines == {f"{name}={target}" for name, target in project["scripts"].items()}
    assert set(project["scripts"]) == {"va-export", "va-run", "va-check"}


def test_running_a_bundle_pulls_no_framework(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    names = {line.split("(")[0].split("[")[0].rstrip("<>=~! ,.0123456789").lower() for line in required}
    assert {"numpy", "onnxruntime", "tokenizers"} <= names
    assert not names & {"torch", "transformers", "onnxscript", "safetensors", "jinja2"}


def test_finds_its_recipes_when_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    program = (
        "import sys\n"
        f"sys.path[:0] = {[str(tmp_path), sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]!r}\n"
        "import va_export, va_export.export.recipe as recipe\n"
        "from va_export.cli.console import run\n"
        "from va_export.cli.export import export_command\n"
        "print(va_export.__file__)\n"
        "print(*recipe.recipe_names())\n"
        "print(recipe.resolve_model('internvl2-tiny').random_weights)\n"
        "sys.argv = ['va-export', '--version']\n"
        "run(export_command)\n"
    )
    # -S: without it an editable install's import hook would find the sources.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    file, recipes, random_weights, version = done.stdout.splitlines()
    assert Path(file) == tmp_path / "va_export" / "__init__.py"
    assert recipes.split() == sorted(path.stem for path in (REPOSITORY / "engines").glob("*.toml"))
    assert random_weights == "internvl2"
    assert version == f"va-export {__version__}"
