"""The rules of the house: who may import whom, where a model family may be named, what every file must have."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from va_export.models import FAMILIES
from va_export.ops.declaration import DOMAIN, OP_VERSIONS, VERSION
from va_export.passes import PASSES

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "va_export"
PLUGINS = REPOSITORY / "plugins"
LONGEST_FILE = 400

# What only exporting needs; a machine that runs a bundle has none of it.
EXPORT_LIBRARIES = {"torch", "transformers", "onnxscript", "safetensors", "huggingface_hub", "jinja2"}
EXPORT_FOLDERS = {
    "graph",
    "passes",
    "models",
    "ops",
    "report",
    "evidence",
    "pipeline",
    "export",
    "proof",
    "checkpoint",
    "cli",
}


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files()}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(statement: ast.stmt) -> Iterator[str]:
    """Dotted names of modules; of `from a import b` both a and a.b, for b may be a module."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        assert statement.level == 0, "imports are absolute here"
        yield statement.module or ""
        yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


RUNTIME = [
    name
    for name in MODULES
    if (name.startswith(("va_export.runtime", "va_export.bundle")) and name != "va_export.runtime.backends.pytorch")
    or name in ("va_export", "va_export.settings", "va_export.errors", "va_export.documents", "va_export.native")
]


WITHOUT_EXPORT_LIBRARIES = f"""
import importlib, sys
class Absent:
    absent = {sorted(EXPORT_LIBRARIES)!r}
    def find_spec(self, name, path=None, target=None):
        if any((name + ".").startswith(each + ".") for each in self.absent):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
absent = Absent()
sys.meta_path.insert(0, absent)
absent.absent += {[f"va_export.{folder}" for folder in sorted(EXPORT_FOLDERS)]!r}  # nor are the rooms that need them
for name in sys.argv[1:]:
    importlib.import_module(name)
absent.absent = {sorted(EXPORT_LIBRARIES)!r}
import numpy as np
from va_export import Bundle
from va_export.anchor import subspace_score
from va_export.cli import check, export, run
score = subspace_score(np.random.default_rng(0).normal(size=(24, 8)), n_subspaces=3)
print(score.shape, float(score.min()), Bundle.__name__)
"""


def test_runs_where_no_export_library_is_installed() -> None:
    command = [sys.executable, "-c", WITHOUT_EXPORT_LIBRARIES, *RUNTIME]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(24,) 0.0 Bundle\n"), done.stderr


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("va_export/settings.py", "import torch", "TID253"),
        ("va_export/runtime/x.py", "import transformers", "TID253"),
        ("va_export/runtime/backends/x.py", "from va_export.models import FAMILIES", "TID253"),
        ("va_export/bundle/x.py", "from va_export.export.recipe import Recipe", "TID253"),
        ("va_export/graph/x.py", "import tensorrt_rtx", "TID251"),
        ("va_export/cli/x.py", "from scripts import gpu_check", "TID251"),
        ("va_export/cli/x.py", "from . import console", "TID252"),
    ],
)
def test_the_linter_keeps_the_rooms_apart(file: str, line: str, rule: str) -> None:
    """The rules are ruff's (pyproject.toml, ruff.toml); here only that they act where they should."""
    command = [
        str(Path(sys.executable).parent / "ruff"),
        "check",
        "--output-format",
        "concise",
        "--stdin-filename",
        file,
        "-",
    ]
    done = subprocess.run(command, input=line + "\n", cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and rule in done.stdout, done.stdout + done.stderr


def included(path: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """(file, header) for every include of a source and of our headers that it includes."""
    seen.add(path)
    for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        yield path, header
        for ours in (path.parent / header, PLUGINS / header):
            if ours.is_file() and ours not in seen:
                yield from included(ours, seen)


KERNELS = sorted([*PLUGINS.rglob("*.cu"), *PLUGINS.rglob("*.cuh")])


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.relative_to(PLUGINS).as_posix())
def test_kernels_know_no_framework(kernel: Path) -> None:
    for file, header in included(kernel, set()):
        assert not re.match(r"NvInfer|NvOnnx|torch/|ATen|c10/|Python\.h|pybind11", header), f"{file.name}: {header}"
        assert not header.endswith(("plugin.h", "contract.h")), f"{file.name}: {header}"


def test_include_rule_can_fail() -> None:
    headers = [header for _, header in included(PLUGINS / "library.cpp", set())]
    assert "NvInferRuntime.h" in headers
    assert "anchored_attention.h" in headers, "found through plugin.h"


@pytest.mark.parametrize("source", sorted(PLUGINS.rglob("*.cpp")), ids=lambda path: path.name)
def test_plugins_do_no_arithmetic(source: Path) -> None:
    text = source.read_text()
    assert not re.search(r"__global__|__device__|<<<|cudaLaunchKernel", text)
    assert not re.search(r'#\s*include\s*[<"][^>"]*\.cuh?[>"]', text)


def test_every_native_source_is_built_and_every_plugin_is_whole() -> None:
    cmake = (PLUGINS / "CMakeLists.txt").read_text()
    for source in [*PLUGINS.rglob("*.cpp"), *PLUGINS.rglob("*.cu")]:
        assert f"  {source.relative_to(PLUGINS).as_posix()}" in cmake, source.name
    library = (PLUGINS / "library.cpp").read_text()
    folders = {path.parent for path in PLUGINS.glob("*/plugin.cpp")}
    # common: what kernels share; greedy_step: the runtime's own, no op
    apart = {PLUGINS / "common", PLUGINS / "greedy_step"}
    assert {PLUGINS / path.relative_to(PLUGINS).parts[0] for path in KERNELS} - apart == folders
    for folder in folders:
        assert {"contract.h", "creator.cpp", "plugin.h", f"{folder.name}.cu", f"{folder.name}.h"} <= {
            path.name for path in folder.iterdir()
        }
        assert f"{folder.name}_contract()" in library
        assert f"va_{folder.name}_*;" in (PLUGINS / "exports.map").read_text()


# Where a family's name may stand outside of its own folder, its recipes and tests, and in what words. Each is the name
# of a recipe, or of a model whose settings the paper states; no code there asks which family it has.
FAMILY_NAMES_ELSEWHERE = {
    "va_export/models/__init__.py": (  # the rows
        "from va_export.models.internvl2 import InternVL2",
        "from va_export.models.qwen2_5_vl import Qwen25VL",
        "from va_export.models.qwen3_vl import Qwen3VL",
        "from va_export.models.llava import Llava",
        "(InternVL2(), Qwen25VL(), Qwen3VL(), Llava())",
    ),
    "va_export/anchor/gains.py": ("InternVL2-8B", "InternVL2-4B"),  # the paper's gains
    # default gains; what marks the recipes' folder
    "va_export/export/recipe.py": ("InternVL2-8B", "internvl2-tiny.toml"),
    "va_export/cli/export.py": ("internvl2-tiny",),  # the default recipe
}


def family_words() -> set[str]:
    """`internvl` from `internvl2`: a name without the number at its end, so that relatives are found too, however it
    is punctuated; and its decoders'. A decoder that several families have (Qwen2) is no family's name."""
    words = {re.sub("[_.-]", "[_. -]?", family.name.rstrip("0123456789")) for family in FAMILIES}
    return words | {"internlm", *(name.lower() for family in FAMILIES for name in family.architectures)}


def test_family_names_stay_at_home() -> None:
    words = re.compile("|".join(sorted(family_words())), re.IGNORECASE)
    homes = [f"va_export/models/{family.name}/" for family in FAMILIES]
    patterns = ("va_export/**/*", "plugins/**/*", "scripts/*")
    for path in sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern)):
        relative = path.relative_to(REPOSITORY).as_posix()
        is_source = path.is_file() and path.suffix not in (".pyc", ".so")
        if not is_source or relative.startswith(tuple(homes)):
            continue
        text = path.read_text(encoding="utf-8")
        if relative.startswith("scripts/"):  # they run recipes, by name
            for recipe in (REPOSITORY / "engines").glob("*.toml"):
                text = text.replace(recipe.stem, "")
        for phrase in FAMILY_NAMES_ELSEWHERE.get(relative, ()):
            assert phrase in text, f"{relative} no longer says {phrase!r}: take the exception away"
            text = text.replace(phrase, "")
        found = [line.strip() for line in text.splitlines() if words.search(line)]
        assert not found, f"{relative} names a model family"


def test_every_family_is_whole() -> None:
    for family in FAMILIES:
        assert (PACKAGE / "models" / family.name / "__init__.py").is_file()
        assert list((REPOSITORY / "tests" / "models" / family.name).glob("test_*.py"))


def test_every_recipe_is_packed() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for recipe in (REPOSITORY / "engines").glob("*.toml"):
        assert f'"engines/{recipe.name}" = "va_export/recipes/{recipe.name}"' in pyproject


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_is_short_and_documented(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_FILE
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    tree = parse(path)
    assert not tree.body or ast.get_docstring(tree) or path.name == "_version.py", "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            is_overload = any(ast.unparse(mark).endswith("overload") for mark in node.decorator_list)
            assert is_overload or ast.get_docstring(node), f"{node.name} has no docstring"


# Modules in passes/ that are not in PASSES, and who uses them.
USED_ELSEWHERE = {
    "lower_anchored_attention": "va_export.graph.native",  # --attention native
    "strip_function_body": "va_export.tensorrt.prepare_onnx",  # hands an op over to its plugin
}
NO_PASSES = {"weight_marks"}  # what passes know of weights


def test_list_of_passes_is_complete() -> None:
    modules = {path.stem for path in (PACKAGE / "passes").glob("*.py")} - {"__init__"} - NO_PASSES
    listed = {graph_pass.__name__ for graph_pass in PASSES}
    assert listed | set(USED_ELSEWHERE) == modules
    assert not listed & set(USED_ELSEWHERE)
    for name in modules:
        module = importlib.import_module(f"va_export.passes.{name}")
        assert callable(getattr(module, name)), "a pass has its module's name"
        assert "→" in (module.__doc__ or "") or name not in listed, "the docstring of a pass states its rewrite rule"
    for name, user in USED_ELSEWHERE.items():
        assert f"va_export.passes.{name}.{name}" in {
            imported
            for statement in ast.walk(parse(MODULES[user]))
            if isinstance(statement, ast.stmt)
            for imported in imported_names(statement)
        }


def test_every_op_is_declared_once() -> None:
    modules = {path.stem for path in (PACKAGE / "ops").glob("*.py")} - {"__init__", "declaration"}
    ops = {name: importlib.import_module(f"va_export.ops.{name}") for name in modules}
    assert {op.OP_TYPE for op in ops.values()} == set(OP_VERSIONS)
    assert set(OP_VERSIONS.values()) == {VERSION}
    for op in ops.values():
        schema = op.schema()
        assert (schema.name, schema.domain, schema.since_version) == (op.OP_TYPE, DOMAIN, OP_VERSIONS[op.OP_TYPE])
