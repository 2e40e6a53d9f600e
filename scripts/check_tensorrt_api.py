"""Hold what this package uses of TensorRT's Python API against full TensorRT, which CI cannot install.

    python scripts/check_tensorrt_api.py [PACKAGE]     PACKAGE: the folder va_export, unless it is this repository's

Compared with the type stubs of TensorRT 10.13 (the wheel tensorrt-stubs, installed without its dependencies):
the typing protocols of tensorrt/types.py, member by member, with the names of their parameters; every name that
tensorrt/*.py and runtime/backends/tensorrt*.py take from the module itself; the classes that are derived from
TensorRT's. What only TensorRT-RTX has is listed in RTX_ONLY. Exit codes: 0 all is there; 1 something is not; 2 no
stubs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

STUBS = "tensorrt-stubs"

# The generator of the stubs wrote five lines that are no Python: a parameter without a default after some with one, and
# four parameters called `in`. Names are all that is read here, so a rename does no harm.
FAULTS = {
    "power: Weights = None, channel_axis: int)": "power: Weights = None, *, channel_axis: int)",
    ", in: list[": ", in_: list[",
}

# Members that TensorRT-RTX has and full TensorRT has not; the code asks for them under that flavour only.
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}

# Our protocols' names for TensorRT's classes.
PROTOCOLS = {
    "Tensor": "ITensor",
    "Layer": "ILayer",
    "Network": "INetworkDefinition",
    "OptimizationProfile": "IOptimizationProfile",
    "BuilderConfig": "IBuilderConfig",
    "Builder": "Builder",
    "ParserError": "ParserError",
    "OnnxParser": "OnnxParser",
    "PluginRegistry": "IPluginRegistry",
    "Runtime": "Runtime",
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
}

# Used through values that are typed Any, or by a name held in a string, where reading the code does not show the class.
BY_NAME = {
    "ITimingCache.serialize",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    *(f"DataType.{name}" for name in ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8")),
}

Signatures = list[ast.arguments]


@dataclass
class Declared:
    """One class: attributes and properties (an empty list), methods (their overloads), and classes inside it."""

    members: dict[str, Signatures] = field(default_factory=dict)
    inner: dict[str, Declared] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


def read_class(node: ast.ClassDef) -> Declared:
    declared = Declared(bases=[base.id for base in node.bases if isinstance(base, ast.Name)])
    for statement in node.body:
        if isinstance(statement, ast.ClassDef):
            declared.inner[statement.name] = read_class(statement)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            declared.members[statement.target.id] = []
        elif isinstance(statement, ast.FunctionDef):
            signatures = declared.members.setdefault(statement.name, [])
            if not any(isinstance(mark, ast.Name) and mark.id == "property" for mark in statement.decorator_list):
                signatures.append(statement.args)
    return declared


def read_stubs() -> tuple[dict[str, Declared], set[str], str]:
    """Classes of the bindings by name, the names that the module `tensorrt` exports, and the stubs' version."""
    distribution = metadata.distribution(STUBS)
    source = Path(str(distribution.locate_file("tensorrt_bindings/tensorrt.pyi"))).read_text(encoding="utf-8")
    for wrong, right in FAULTS.items():
        print(f"repaired in the stubs: {source.count(wrong)} × {wrong!r}")
        source = source.replace(wrong, right)
    classes = {node.name: read_class(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    exports = set()
    module = Path(str(distribution.locate_file("tensorrt/__init__.pyi"))).read_text(encoding="utf-8")
    for statement in ast.parse(module).body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            exports |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            exports.add(statement.target.id)
    return classes, exports, distribution.version


def find(classes: dict[str, Declared], name: str, member: str) -> Signatures | None:
    """The signatures of a member, its own or inherited; None where there is no such member."""
    declared = classes.get(name)
    if declared is None:
        return None
    if member in declared.members:
        return declared.members[member]
    inherited = (find(classes, base, member) for base in declared.bases)
    return next((found for found in inherited if found is not None), None)


def parameters(arguments: ast.arguments) -> list[str]:
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]


def takes(theirs: ast.arguments, ours: list[str]) -> bool:
    """Whether a call with just our parameters, by position or by name, is one that theirs takes."""
    names = parameters(theirs)
    return names[: len(ours)] == ours and len(names) - len(theirs.defaults) <= len(ours)


def check_protocols(path: Path, classes: dict[str, Declared]) -> Iterator[tuple[str, str]]:
    """(name, fault or "") for every member of every protocol."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        if node.name not in PROTOCOLS:
            yield node.name, "a protocol that PROTOCOLS does not name"
            continue
        for member, ours in read_class(node).members.items():
            theirs = find(classes, PROTOCOLS[node.name], member)
            fault = ""
            if theirs is None:
                fault = "no such member"
            elif bool(theirs) != bool(ours):
                fault = "a method here and an attribute there, or the other way round"
            elif ours and not any(takes(signature, parameters(ours[0])) for signature in theirs):
                fault = f"takes ({', '.join(parameters(theirs[0]))}), not ({', '.join(parameters(ours[0]))})"
            yield f"{PROTOCOLS[node.name]}.{member}", fault


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """`api.module.A.b` → "A.b", also through a local name for `api.module.A`; None for everything else."""
    match node:
        case ast.Attribute(value=ast.Name(id="api" | "self"), attr="module"):
            return ""
        case ast.Attribute(value=value, attr=attr):
            before = dotted(value, aliases)
            return None if before is None else f"{before}.{attr}".lstrip(".")
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(attr)), *_]):
            before = dotted(value, aliases)
            return None if before is None else f"{before}.{attr}".lstrip(".")
        case ast.Name(id=name):
            return aliases.get(name)
    return None


def module_uses(function: ast.AST) -> Iterator[tuple[str, ast.ClassDef | None]]:
    """Every name that a function takes from TensorRT's module, with the class that is derived from it, if one is."""
    aliases: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and (name := dotted(node.value, {})):
                aliases[target.id] = name
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute | ast.Call) and (name := dotted(node, aliases)):
            yield name, None
        elif isinstance(node, ast.ClassDef):
            yield from ((name, node) for base in node.bases if (name := dotted(base, aliases)))


def check_use(name: str, derived: ast.ClassDef | None, classes: dict[str, Declared], exports: set[str]) -> str:
    """What is wrong with a use, or ""."""
    first, *rest = name.split(".")
    if first not in exports:
        return "the module has no such name"
    scope = classes
    for outer, member in zip([first, *rest], rest, strict=False):
        if outer in scope and member in scope[outer].inner:
            scope = scope[outer].inner
        elif find(scope, outer, member) is None:
            return f"{outer} has no {member}"
    if derived is not None:
        ours, theirs = read_class(derived).members, scope[name.rsplit(".", 1)[-1]].members
        counts = [
            {
                method: len(parameters(signatures[0]))
                for method, signatures in members.items()
                if signatures and method[0] != "_"
            }
            for members in (ours, theirs)
        ]
        if counts[0] != counts[1]:
            return f"a derived class overrides {counts[0]}, where {counts[1]} (with numbers of parameters) are called"
    return ""


def is_rtx_only(name: str) -> bool:
    return any(name == known or name.startswith(f"{known}.") for known in RTX_ONLY)


def main() -> int:
    package = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "va_export")
    try:
        classes, exports, version = read_stubs()
    except metadata.PackageNotFoundError:
        print(f"error: {STUBS} is not installed\n  fix:   run scripts/check.sh, which installs it", file=sys.stderr)
        return 2
    compared = dict(check_protocols(package / "tensorrt" / "types.py", classes))
    for path in sorted([*package.glob("tensorrt/*.py"), *package.glob("runtime/backends/tensorrt*.py")]):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for name, derived in module_uses(function):
                    compared[name] = check_use(name, derived, classes, exports) or compared.get(name, "")
    for name in BY_NAME:
        owner, member = name.split(".")
        compared[name] = "" if find(classes, owner, member) is not None else "no such member"
    faults = {name: fault for name, fault in compared.items() if fault and not is_rtx_only(name)}
    stale = (name for name in RTX_ONLY if not compared.get(name))
    faults |= dict.fromkeys(stale, "listed in RTX_ONLY, and full TensorRT has it, or nothing here uses it")
    for name in sorted(compared):
        print(f"{'FAIL' if name in faults else 'RTX ' if is_rtx_only(name) else 'ok  '} {name}")
    print(f"{len(compared)} names compared with {STUBS} {version}: {len(faults)} faults")
    for name, fault in sorted(faults.items()):
        print(f"error: {name}: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
