"""Code in a bundle is executed if something outside of the bundle vouches for it, and not otherwise."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import va_check, va_run
from resealing import reseal
from synthetic_manifest import component_entry, engine_entry, manifest_of

import va_export.bundle.trust as trust
from va_export.bundle.manifest import Manifest, read_manifest
from va_export.bundle.trust import admit_code, judge_code, remember_own_code
from va_export.bundle.write import bundle_writer
from va_export.errors import VaExportError
from va_export.native import plugin_library as installed_library
from va_export.native.selftest.prove import ProvenKernels
from va_export.runtime.backends import tensorrt as tensorrt_backend
from va_export.runtime.bundle import Bundle

LIBRARY, ENGINE = "plugins/libva_plugins.so", "engines/tensorrt-rtx/decoder.engine"
RTX = "tensorrt-rtx"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a record, whose package holds a library of three bytes."""
    (tmp_path / "installed.so").write_bytes(b"our")
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "installed.so"))
    monkeypatch.setenv("VA_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VA_EXPORT_TRUST_PLUGINS", raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "b")


def write_bundle(place: Path, library: bytes = b"evil", engine: bytes = b"plan", attention: str = "plugin") -> Path:
    components = {"decoder": component_entry("decoder", engines={RTX: engine_entry(ENGINE)})}
    plugin = {"library": LIBRARY, "contract": {}}
    document = manifest_of(place, components, attention=attention, plugin=plugin).data
    with bundle_writer(place, overwrite=True) as writer:
        writer.path(LIBRARY).write_bytes(library)
        writer.path(ENGINE).write_bytes(engine)
        writer.seal(document)
        return writer.commit(passed=True)


def vouchers(manifest: Manifest, **options: bool) -> dict[str, bool]:
    return {code.name: code.voucher is not None for code in judge_code(manifest, RTX, **options)}


def test_a_strangers_code_is_refused_with_path_and_hash(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert vouchers(manifest) == {LIBRARY: False, ENGINE: False}
    with pytest.raises(VaExportError) as caught:
        admit_code(manifest, RTX)
    assert caught.value.where == str(bundle / LIBRARY)
    for words in (digest(b"evil"), digest(b"plan"), LIBRARY, ENGINE):
        assert words in caught.value.what
    for way in ("--trust-plugins", "trust_plugins=True", "VA_EXPORT_TRUST_PLUGINS=1", "onnxruntime"):
        assert way in (caught.value.fix or "")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_other_backends_execute_nothing(bundle: Path, backend: str) -> None:
    assert judge_code(read_manifest(bundle), backend) == ()


def test_hashes_in_the_bundle_vouch_for_nothing(tmp_path: Path) -> None:
    """The installed library's hash in the manifest loads the installed library, whatever the bundle's file holds."""
    bundle = write_bundle(tmp_path / "b", library=b"our")
    (bundle / LIBRARY).write_bytes(b"bad")
    library = judge_code(read_manifest(bundle), RTX)[0]
    assert library.installed == tmp_path / "installed.so"
    # A manifest that lies about its own file: what lies there is what is judged.
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"][LIBRARY]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(data))
    library = judge_code(read_manifest(bundle), RTX)[0]
    assert (library.sha256, library.voucher, library.installed) == (digest(b"bad"), None, None)


def test_the_installed_library_is_loaded_in_the_place_of_its_copy(tmp_path: Path) -> None:
    manifest = read_manifest(write_bundle(tmp_path / "b", library=b"our"))
    assert vouchers(manifest) == {LIBRARY: True, ENGINE: False}
    assert admit_code(manifest, RTX, trust_plugins=True).library == tmp_path / "installed.so"


def test_a_package_without_a_library_knows_none(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "absent.so"))
    assert vouchers(read_manifest(bundle)) == {LIBRARY: False, ENGINE: False}


def test_attention_in_standard_operators_needs_no_library(tmp_path: Path) -> None:
    manifest = read_manifest(write_bundle(tmp_path / "b", attention="native"))
    assert vouchers(manifest) == {ENGINE: False}
    assert admit_code(manifest, RTX, trust_plugins=True).library is None


def test_a_library_that_this_version_knows(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_known_libraries", lambda: {digest(b"evil"): "0.0", digest(b"plan"): "0.0"})
    assert vouchers(read_manifest(bundle)) == {LIBRARY: True, ENGINE: False}  # it is a list of libraries


def test_the_shipped_list_is_of_hashes() -> None:
    assert all(len(bytes.fromhex(key)) == 32 for key in trust._known_libraries())


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_user_says_so(bundle: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("VA_EXPORT_TRUST_PLUGINS", "1")
    manifest = read_manifest(bundle)
    code = admit_code(manifest, RTX, trust_plugins=how == "option")
    assert code.library is not None and code.library.read_bytes() == b"evil"
    assert code.engine(ENGINE).read_bytes() == b"plan"
    with pytest.raises(VaExportError):
        code.engine(LIBRARY)


@pytest.mark.parametrize(("value", "refused"), [("", True), ("0", True), ("yes", True), ("01", True), ("1", False)])
def test_only_one_value_of_the_variable_trusts(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str, refused: bool
) -> None:
    monkeypatch.setenv("VA_EXPORT_TRUST_PLUGINS", value)
    if refused:
        with pytest.raises(VaExportError):
            admit_code(read_manifest(bundle), RTX)
    else:
        admit_code(read_manifest(bundle), RTX)


def test_what_an_export_here_wrote_is_executed_here(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    for _ in range(2):
        remember_own_code(manifest, bundle)
    record = tmp_path / "cache" / "own-code.txt"
    assert sorted(line.split("  ")[0] for line in record.read_text().splitlines()) == sorted(
        [digest(b"evil"), digest(b"plan")]
    )
    assert record.stat().st_mode & 0o077 == 0
    assert vouchers(manifest) == {LIBRARY: True, ENGINE: True}
    other = read_manifest(write_bundle(tmp_path / "other", engine=b"PLAN"))
    assert vouchers(other) == {LIBRARY: True, ENGINE: False}


def test_a_record_that_others_can_write_counts_for_nothing(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(bundle)
    remember_own_code(manifest, bundle)
    record = tmp_path / "cache" / "own-code.txt"
    record.chmod(0o666)
    with caplog.at_level(logging.WARNING, "va_export.trust"):
        assert not any(vouchers(manifest).values())
    assert str(record) in caplog.text
    record.chmod(0o600)
    record.rename(tmp_path / "moved")
    record.symlink_to(tmp_path / "moved")
    assert not any(vouchers(manifest).values())


def test_a_record_that_cannot_be_written_costs_no_export(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder is wanted")
    remember_own_code(read_manifest(bundle), bundle)
    assert not any(vouchers(read_manifest(bundle)).values())


def test_what_is_loaded_is_what_was_judged(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    code = admit_code(manifest, RTX, trust_plugins=True)
    engine = code.engine(ENGINE)
    for name in (LIBRARY, ENGINE):
        (bundle / "new").write_bytes(b"swap")
        (bundle / "new").replace(bundle / name)
    assert code.library is not None and code.library.read_bytes() == b"evil"
    assert engine.read_bytes() == b"plan"
    code.check_unchanged()
    with pytest.raises(PermissionError), code.library.open("r+b") as file:
        file.write(b"x")


def test_an_engine_that_is_edited_while_it_is_read_is_refused(bundle: Path) -> None:
    os.utime(bundle / ENGINE, ns=(0, 0))
    code = admit_code(read_manifest(bundle), RTX, trust_plugins=True)
    (bundle / ENGINE).write_bytes(b"swap")
    with pytest.raises(VaExportError) as caught:
        code.check_unchanged()
    assert caught.value.where == str(bundle / ENGINE)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins that note what would have been executed."""
    executed: list[Any] = []
    monkeypatch.setattr(tensorrt_backend, "CudaDevice", lambda flavor, index: executed.append(index))
    monkeypatch.setattr(tensorrt_backend, "TensorRTSession", lambda *arguments: executed.append(arguments))

    def prove(library: Path, device: int, manifest: Manifest) -> ProvenKernels:
        executed.append(("self-test", device, library))
        return ProvenKernels({}, True, "")

    monkeypatch.setattr(tensorrt_backend, "_prove_kernels", prove)
    return executed


@pytest.fixture
def strange_bundle(copied_bundle: Path, needs_engines: None) -> Path:
    """A bundle of a stranger: its library is not ours, and its manifest says that all is well."""
    library = copied_bundle / LIBRARY
    library.write_bytes(library.read_bytes() + b"!")
    reseal(copied_bundle, LIBRARY)
    return copied_bundle


def test_nothing_is_touched_before_the_verdict(strange_bundle: Path, without_gpu: list[Any]) -> None:
    with pytest.raises(VaExportError) as caught:
        Bundle.open(strange_bundle, RTX)
    assert caught.value.where == str(strange_bundle / LIBRARY)
    assert without_gpu == []
    opened = Bundle.open(strange_bundle, RTX, trust_plugins=True)
    assert [each[0] for each in without_gpu if isinstance(each, tuple)].count("self-test") == 1
    libraries = {each[2] for each in without_gpu if isinstance(each, tuple)} - {None}
    assert [library.read_bytes()[-1:] for library in libraries] == [b"!"]
    assert opened.backend.name == RTX


def test_check_tells_what_would_be_executed_before_it_refuses(strange_bundle: Path) -> None:
    outcome = va_check(strange_bundle, "--backend", RTX)
    assert outcome.code == 2
    told = [line for line in outcome.stderr.replace("\n", " ").split("executed: ") if line.startswith(LIBRARY)]
    assert len(told) == 1 and digest((strange_bundle / LIBRARY).read_bytes()) in told[0].replace(" ", "")
    assert outcome.stderr.index("executed: ") < outcome.stderr.index("error: ")
    assert "engines/tensorrt-rtx/vision.engine" in outcome.stderr


def test_run_refuses_too(strange_bundle: Path, clip: Path) -> None:
    outcome = va_run(strange_bundle, "--video", clip, "--prompt", "?", "--backend", RTX)
    assert outcome.code == 2 and "--trust-plugins" in outcome.stderr


def test_check_tells_that_graphs_are_data(tiny_bundle: Path) -> None:
    outcome = va_check(tiny_bundle, "--latency-iterations", 0)
    assert outcome.code == 0 and "executed: nothing of the bundle" in outcome.stderr


def test_an_export_vouches_for_what_it_wrote(tiny_bundle: Path, own_engine_cache: Path, needs_engines: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VA_EXPORT_CACHE", str(own_engine_cache))
        codes = judge_code(read_manifest(tiny_bundle), RTX)
    assert len(codes) >= 4 and all(code.voucher for code in codes)


def test_the_sealed_copy_is_loaded_as_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VA_EXPORT_PLUGIN_LIBRARY")
    try:
        content = installed_library().read_bytes()
    except VaExportError:
        pytest.skip("the package was installed without the plugin library")
    bundle = write_bundle(tmp_path / "b", library=content + b"another build")  # ELF does not mind bytes behind its end
    code = admit_code(read_manifest(bundle), RTX, trust_plugins=True)
    shutil.rmtree(bundle)
    library = ctypes.CDLL(str(code.library))
    library.va_plugins_contract.restype = ctypes.c_char_p
    assert "ops" in json.loads(library.va_plugins_contract())
