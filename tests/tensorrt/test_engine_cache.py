"""The engine cache: what hits, what misses, and that no trouble ever puts a wrong engine into a bundle."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest
from msgspec.structs import replace
from refusals import refused
from test_architecture import MODULES

from va_export.bundle.manifest import sha256
from va_export.bundle.tensors import DimensionRange
from va_export.errors import VaExportError
from va_export.tensorrt import cache_key as key_module
from va_export.tensorrt.cache_key import BUILD_SOURCES, CacheKey, cache_key, graph_sha256
from va_export.tensorrt.engine_cache import EngineCache
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.prepare_onnx import PluginNode
from va_export.tensorrt.profiles import Profile, ShapeRange

RANGES = {"prefill": {"batch": DimensionRange(1, 1, 2)}}


class Builder:
    """Writes an engine of the given content, and counts how often it was asked to."""

    def __init__(self, destination: Path, content: bytes = b"engine") -> None:
        self.destination, self.content, self.times = destination, content, 0
        destination.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> EngineInfo:
        self.times += 1
        self.destination.write_bytes(self.content)
        profile = Profile("prefill", {"x": ShapeRange((1, 2), (1, 2), (2, 2))})
        nodes = (PluginNode("n", "AnchoredAttention"),)
        shapes = {"x": ("batch", 2)}
        size = len(self.content)
        return EngineInfo(size, 1.5, {"A": 2}, nodes, 2, "tensorrt-rtx", "1", ("sm89",), (profile,), shapes, 9)


def key(name: str = "a") -> CacheKey:
    import hashlib

    return CacheKey(hashlib.sha256(name.encode()).hexdigest(), {"name": name})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_the_second_export_builds_nothing(cache: EngineCache, tmp_path: Path) -> None:
    first, second = Builder(tmp_path / "one" / "d.engine"), Builder(tmp_path / "two" / "d.engine")
    built = cache.obtain(key(), first.destination, first)
    reused = cache.obtain(key(), second.destination, second)
    assert (first.times, second.times, built.reused, reused.reused) == (1, 0, False, True)
    assert second.destination.read_bytes() == b"engine"
    assert reused.info == built.info
    assert reused.sha256 == built.sha256 == sha256(first.destination)
    assert second.destination.samefile(first.destination)  # one file on the disk
    assert [path.name for path in second.destination.parent.iterdir()] == ["d.engine"]
    assert cache.obtain(key("b"), tmp_path / "three" / "d", Builder(tmp_path / "three" / "d")).reused is False


def test_every_ingredient_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"graph": "1", "weights": "2", "plugin": "3"}
    request = BuildRequest(Path("graph"), "tensorrt-rtx", ("sm89",), RANGES, "plugin", 96, Path("plugin"))

    def digest(request: BuildRequest = request, version: str = "1.7", **changed: str) -> str:
        known = {**hashes, **changed}
        weights = (Path("weights"),)
        return cache_key(request, version, known["graph"], lambda path: known[path.name], weights).digest

    assert digest() == digest()
    other_range = {"prefill": {"batch": DimensionRange(1, 1, 3)}}
    different = [
        digest(graph="x"),
        digest(weights="x"),
        digest(plugin="x"),
        digest(version="1.8"),
        digest(replace(request, flavor="tensorrt")),
        digest(replace(request, targets=("sm86", "sm89"))),
        digest(replace(request, ranges=other_range)),
        digest(replace(request, ranges={**RANGES, "decode": RANGES["prefill"]})),
        digest(replace(request, attention="native")),
        digest(replace(request, capacity=97)),
        digest(replace(request, plugin_library=None)),
    ]
    monkeypatch.setattr(key_module, "_builder_sources", lambda: "edited")
    different.append(digest())
    assert len({digest(), *different}) == len(different)  # the last is digest() now
    present = replace(request, targets=("current",))
    one = digest(present)
    monkeypatch.setattr(key_module, "_hardware", lambda: {"cards": ["another"]})
    assert digest(present) != one and digest() == different[-1]  # other targets do not ask what GPU is here


def test_the_place_of_the_files_does_not_count(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        request = BuildRequest(Path(folder, "g"), "tensorrt-rtx", ("sm89",), RANGES, "plugin", 96, Path(folder, "p"))
        return cache_key(request, "1.7", "graph", lambda path: path.name, (Path(folder, "w"),)).digest

    assert digest("here") == digest("there")


def test_notes_in_a_graph_do_not_count(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[n] x) => (float[n] y) { c = Constant <value_float = 2.0> ()  y = Mul (x, c) }""")

    def digest() -> str:
        onnx.save(model, tmp_path / "g.onnx")
        return graph_sha256(tmp_path / "g.onnx")

    before = digest()
    for part in (model, model.graph, model.graph.node[0], model.graph.input[0]):
        part.metadata_props.add(key="pkg.torch", value="a note")
        part.doc_string = "another"
    assert digest() == before
    model.graph.node[0].attribute[0].f = 3.0
    assert digest() != before


def test_the_sources_of_a_build_are_all_named() -> None:
    """What tensorrt/build.py imports of ours and what could change an engine."""
    harmless = {
        "tensorrt/build_log.py",  # what TensorRT says
        "tensorrt/alias_library.py",  # whether it loads
        "tensorrt/inspect_engine.py",  # reads the engine afterwards
        "tensorrt/engine_info.py",  # the result's form
        "tensorrt/types.py",  # types for the checker
        "documents.py",
        "errors.py",
        "_version.py",
        "bundle/tensors.py",  # ranges, which come as values
    }
    package = Path(key_module.__file__).parents[1]
    program = "import sys, va_export.tensorrt.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reached = {name for name in done.stdout.split() if name in MODULES}
    # A package's __init__ that imports its modules brings in passes which a build never calls.
    called = {name for name in reached if not MODULES[name].name.startswith("__init__")}
    called -= {name for name in called if name.startswith("va_export.passes.")}
    trees = [ast.parse(MODULES[name].read_text()) for name in called if name.startswith("va_export.tensorrt.")]
    called |= {
        node.module
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("va_export.passes.")
    }
    assert {MODULES[name].relative_to(package).as_posix() for name in called} - harmless == set(BUILD_SOURCES)


def damage_engine(cache: EngineCache) -> None:
    path = cache.directory / f"{key().digest}.engine"
    path.write_bytes(b"enginE")  # of the same size


def shorten_engine(cache: EngineCache) -> None:
    (cache.directory / f"{key().digest}.engine").write_bytes(b"engi")


def remove_engine(cache: EngineCache) -> None:
    (cache.directory / f"{key().digest}.engine").unlink()


def damage_entry(cache: EngineCache) -> None:
    (cache.directory / f"{key().digest}.json").write_text('{"info": ')


def change_entry(cache: EngineCache) -> None:
    (cache.directory / f"{key().digest}.json").write_text(json.dumps({"info": {"size": 3}, "sha256": ""}))


def remove_entry(cache: EngineCache) -> None:
    (cache.directory / f"{key().digest}.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_engine, shorten_engine, remove_engine, damage_entry, change_entry, remove_entry]
)
def test_a_damaged_entry_is_built_again(
    cache: EngineCache, tmp_path: Path, damage: Callable[[EngineCache], None]
) -> None:
    first = Builder(tmp_path / "one" / "d.engine")
    cache.obtain(key(), first.destination, first)
    first.destination.unlink()
    damage(cache)
    for name, times in (("two", 1), ("three", 0)):  # built, and whole again for the next
        builder = Builder(tmp_path / name / "d.engine")
        assert cache.obtain(key(), builder.destination, builder).reused is (times == 0)
        assert builder.times == times and builder.destination.read_bytes() == b"engine"


def test_a_bundle_changed_in_place_does_not_spread(cache: EngineCache, tmp_path: Path) -> None:
    first, second = Builder(tmp_path / "one" / "d.engine"), Builder(tmp_path / "two" / "d.engine")
    cache.obtain(key(), first.destination, first)
    first.destination.write_bytes(b"ENGINE")  # the same file as the cache's
    assert cache.obtain(key(), second.destination, second).reused is False
    assert second.destination.read_bytes() == b"engine" and first.destination.read_bytes() == b"ENGINE"


def test_another_file_system_gets_a_copy(cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    first, second = Builder(tmp_path / "one" / "d.engine"), Builder(tmp_path / "two" / "d.engine")
    cache.obtain(key(), first.destination, first)
    assert cache.obtain(key(), second.destination, second).reused is True
    assert second.destination.read_bytes() == b"engine" and not second.destination.samefile(first.destination)
    # Where a copy would fill the disk there is none, and the export goes on.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=11))
    third, fourth = Builder(tmp_path / "3" / "d.engine"), Builder(tmp_path / "4" / "d.engine")
    for builder in (third, fourth):
        assert cache.obtain(key("b"), builder.destination, builder).reused is False
        assert builder.destination.read_bytes() == b"engine"


def test_a_cache_that_cannot_be_used_costs_a_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    builder = Builder(tmp_path / "one" / "d.engine")
    assert EngineCache(tmp_path / "file" / "cache").obtain(key(), builder.destination, builder).reused is False
    assert builder.times == 1 and "cannot be used" in caplog.text


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", max_bytes=20)
    for place, name in enumerate("abc"):  # 6 bytes each
        cache.obtain(key(name), tmp_path / name, Builder(tmp_path / name))
        os.utime(cache.directory / f"{key(name).digest}.json", ns=(place + 1, place + 1))
    foreign = cache.directory / "notes.json"
    foreign.write_text("mine")
    os.utime(cache.directory / f"{key('a').digest}.json", ns=(9, 9))  # used again
    cache.obtain(key("d"), tmp_path / "d", Builder(tmp_path / "d"))
    left = {name for name in "abcd" if (cache.directory / f"{key(name).digest}.engine").exists()}
    assert left == {"a", "c", "d"} and foreign.read_text() == "mine"
    assert not (cache.directory / f"{key('b').digest}.json").exists()
    large = Builder(tmp_path / "e", b"x" * 21)
    assert cache.obtain(key("e"), large.destination, large).reused is False
    assert not (cache.directory / f"{key('e').digest}.engine").exists()  # would push out all others for nothing


def test_leftovers_of_killed_processes_go(cache: EngineCache, tmp_path: Path) -> None:
    cache.directory.mkdir()
    for name in (f".{key('x').digest}.engine.partial", f"{key('y').digest}.engine"):
        (cache.directory / name).write_bytes(b"half")
    cache.obtain(key(), tmp_path / "d", Builder(tmp_path / "d"))
    names = {path.name for path in cache.directory.iterdir()}
    assert names == {"locks", f"{key().digest}.engine", f"{key().digest}.json"}


PROCESS = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from test_engine_cache import Builder, key
from va_export.tensorrt.engine_cache import EngineCache
destination, how = Path(sys.argv[3]), sys.argv[4]
builder = Builder(destination)
def build():
    print("building", flush=True)
    if how == "die":
        destination.write_bytes(b"ha")
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
    return builder()
done = EngineCache(Path(sys.argv[2])).obtain(key(), destination, build, lambda: print("waiting", flush=True))
print("reused" if done.reused else "built", destination.read_bytes().decode(), flush=True)
"""


def start(cache: EngineCache, destination: Path, how: str = "build") -> subprocess.Popen[str]:
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", PROCESS, paths, str(cache.directory), str(destination), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_build_once(cache: EngineCache, tmp_path: Path) -> None:
    first = start(cache, tmp_path / "one")
    assert first.stdout is not None and first.stdout.readline() == "building\n"
    second = start(cache, tmp_path / "two")
    assert second.stdout is not None and second.stdout.readline() == "waiting\n"
    output, _ = first.communicate("go on\n")
    assert output == "built engine\n"
    output, _ = second.communicate()
    assert output == "reused engine\n"


def test_a_build_that_was_killed_leaves_nothing_wrong(cache: EngineCache, tmp_path: Path) -> None:
    killed = start(cache, tmp_path / "one", "die")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not list(cache.directory.glob("*.engine")) and not list(cache.directory.glob("*.json"))
    builder = Builder(tmp_path / "two")
    assert cache.obtain(key(), builder.destination, builder).reused is False  # the lock went with the process
    assert builder.times == 1


def test_a_failed_build_is_not_kept(cache: EngineCache, tmp_path: Path) -> None:
    def fail() -> EngineInfo:
        raise VaExportError("no", where="here")

    with refused("here", fix=False):
        cache.obtain(key(), tmp_path / "d", fail)
    assert [path.name for path in cache.directory.iterdir()] == ["locks"]
