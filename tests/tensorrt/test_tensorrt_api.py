from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from script_files import load_script

from va_export.tensorrt import types as tensorrt_types
from va_export.tensorrt.api import (
    FLAVORS,
    TensorRT,
    available_flavors,
    load_tensorrt,
    select_polygraphy_backend,
)

PROGRAM = Path(__file__).with_name("parse_with_plugin.py")


def _run(mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, mode], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("mode", ["loader", "first"])
def test_parsing_a_plugin_node_survives_whoever_imported_the_module(rtx: TensorRT, mode: str) -> None:
    result = _run(mode)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("PARSED")


def test_the_loader_is_what_makes_it_survive(rtx: TensorRT) -> None:
    result = _run("bare")
    if result.returncode == 0:
        pytest.skip(f"{rtx.label} finds its own library; the alias has become needless")
    assert result.returncode < 0  # ended by a signal, without a Python error


def test_a_missing_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("va_export.tensorrt.api._LOADED", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert available_flavors() == ()
    with refused("tensorrt_rtx") as error:
        load_tensorrt("tensorrt-rtx")
    assert error.value.fix is not None and "va-export[rtx]" in error.value.fix


def test_a_package_of_type_stubs_is_not_taken_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace_package = importlib.machinery.ModuleSpec("tensorrt", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: namespace_package)
    assert available_flavors() == ()


def test_an_unknown_flavour_is_refused() -> None:
    with refused("flavor", "onnx") as error:
        load_tensorrt("onnx")  # type: ignore[arg-type]
    assert error.value.fix is not None and all(flavor in error.value.fix for flavor in FLAVORS)


def test_networks_are_strongly_typed(rtx: TensorRT) -> None:
    trt = rtx.module
    network = rtx.create_network(trt.Builder(trt.Logger(trt.Logger.ERROR)))
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # type: ignore[attr-defined]


def test_no_plugin_library_is_an_error_of_the_user(rtx: TensorRT, tmp_path: Path) -> None:
    with refused(tmp_path / "libnone.so"):
        rtx.load_plugin_library(tmp_path / "libnone.so")
    text = tmp_path / "libtext.so"
    text.write_text("not a library")
    with refused(text):
        rtx.load_plugin_library(text)


def test_a_copy_of_the_plugin_library_is_not_loaded_again(rtx: TensorRT, plugin_library: Path, tmp_path: Path) -> None:
    copy = tmp_path / "libva_plugins.so"
    copy.write_bytes(plugin_library.read_bytes())
    for path in (plugin_library, plugin_library, copy):
        rtx.load_plugin_library(path)
    assert rtx.has_plugin("AnchoredAttention", "1", "ai.videoanchor")
    assert not rtx.has_plugin("AnchoredAttention", "999", "ai.videoanchor")
    copy.write_bytes(plugin_library.read_bytes() + b"another build")  # ELF does not mind bytes behind its end
    with refused(copy) as error:
        rtx.load_plugin_library(copy)
    assert error.value.fix is not None and str(plugin_library) in error.value.fix


@pytest.mark.parametrize(("protocol", "class_name"), load_script("check_tensorrt_api").PROTOCOLS.items())
def test_the_api_has_what_the_protocols_promise(rtx: TensorRT, protocol: str, class_name: str) -> None:
    declared = getattr(tensorrt_types, protocol)
    members = [name for name in vars(declared) if not name.startswith("_")]
    members += [name for name in inspect.get_annotations(declared) if not name.startswith("_")]
    assert members
    # RTX's Python module hides ITensor and ILayer; objects of those classes are reached through a network.
    owner = getattr(rtx.module, class_name, None) or getattr(rtx.module.tensorrt_rtx, class_name)
    assert [name for name in members if not hasattr(owner, name)] == []


def test_polygraphy_is_told_before_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "unset")
    monkeypatch.delitem(sys.modules, "polygraphy.config", raising=False)
    select_polygraphy_backend("tensorrt-rtx")
    config = importlib.import_module("polygraphy.config")
    assert config.USE_TENSORRT_RTX is True
    with refused("polygraphy"):
        select_polygraphy_backend("tensorrt")
