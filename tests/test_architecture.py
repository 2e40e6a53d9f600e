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


def statements_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: none in functions, none for type checkers."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from statements_at_import(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody"):
                yield from statements_at_import(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from statements_at_import(handler.body)


def imported_names(statement: ast.stmt) -> Iterator[str]:
    """Dotted names of modules; of `from a import b` both a and a.b, for b may be a module."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        assert statement.level == 0, "imports are absolute here"
        yield statement.module or ""
        yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def imports_at_import(module: str) -> set[str]:
    """What importing one module imports directly, its parent packages included."""
    parents = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
    statements = statements_at_import(parse(MODULES[module]).body)
    return parents | {name for statement in statements for name in imported_names(statement)}


def closure(module: str) -> dict[str, list[str]]:
    """Everything that importing a module imports, each with the chain of our modules that leads to it."""
    reached = {module: [module]}
    queue = [module]
    while queue:
        current = queue.pop()
        for name in imports_at_import(current):
            if name not in reached:
                reached[name] = [*reached[current], name]
                if name in MODULES:
                    queue.append(name)
    return reached


RUNTIME = [
    name
    for name in MODULES
    if (name.startswith(("va_export.runtime", "va_export.bundle")) and name != "va_export.runtime.backends.pytorch")
    or name in ("va_export", "va_export.settings", "va_export.errors", "va_export.documents", "va_export.native")
]


@pytest.mark.parametrize("module", RUNTIME)
def test_runtime_imports_no_exporter(module: str) -> None:
    for name, chain in closure(module).items():
        assert name.split(".")[0] not in EXPORT_LIBRARIES, " → ".join(chain)
        first = (*name.split("."), "")[1] if name in MODULES and name.startswith("va_export.") else ""
        assert first not in EXPORT_FOLDERS, " → ".join(chain)


def test_table_of_families_imports_no_framework() -> None:
    reached = {name.split(".")[0] for name in closure("va_export.models")}
    assert not reached & {"torch", "transformers"}


def test_import_rule_can_fail() -> None:
    assert "torch" in closure("va_export.pipeline") or "onnxscript" in closure("va_export.pipeline")
    assert "va_export.passes.fold_constants" in closure("va_export.tensorrt.build")
    assert "torch" not in closure("va_export.runtime.backends.pytorch"), "it asks for PyTorch when it is opened"


WITHOUT_EXPORT_LIBRARIES = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(EXPORT_LIBRARIES)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
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


def test_tensorrt_has_one_door() -> None:
    importers = {
        name
        for name, path in MODULES.items()
        for statement in ast.walk(parse(path))
        if isinstance(statement, ast.Import | ast.ImportFrom)
        and {imported.split(".")[0] for imported in imported_names(statement)} & {"tensorrt", "tensorrt_rtx"}
    }
    assert not importers, "tensorrt/tensorrt_api.py loads it by name"
    assert "importlib.import_module(_MODULE_NAMES[flavor])" in (PACKAGE / "tensorrt" / "api.py").read_text()


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
    "va_export/models/__init__.py": ("from va_export.models.internvl2 import InternVL2", "(InternVL2(),)"),  # the row
    "va_export/anchor/gains.py": ("InternVL2-8B", "InternVL2-4B"),  # the paper's gains
    # default gains; what marks the recipes' folder
    "va_export/export/recipe.py": ("InternVL2-8B", "internvl2-tiny.toml"),
    "va_export/cli/export.py": ("internvl2-tiny",),  # the default recipe
}


def family_words() -> set[str]:
    """`internvl` from `internvl2`: a name without its number, so that relatives are found too; and its decoders'."""
    words = {family.name.rstrip("0123456789") for family in FAMILIES}
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
NO_PASSES = {"weights"}  # what passes know of weights


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


def test_scripts_are_never_imported() -> None:
    for path in [*python_files(), *(REPOSITORY / "tests").rglob("*.py")]:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                assert not [name for name in imported_names(node) if name.split(".")[0] == "scripts"], path
