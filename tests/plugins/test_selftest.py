"""The self-test against an emulated GPU whose kernels are right, or wrong in one of the ways in which kernels are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from refusals import refused

from va_export.documents import encode, read
from va_export.native import kernels, load_library
from va_export.native.kernels import DECODE, PHASES, PREFILL, PRODUCTS, selected_kernel
from va_export.native.selftest import prove
from va_export.native.selftest.documents import AttentionShape, Finding, Record
from va_export.native.selftest.prove import VARIABLE, ProvenKernels, take_proven_kernels
from va_export.native.selftest.store import Store

SHAPE = AttentionShape("float16", 2, 1, 16, 16, capacity=64, tuned_length=17)
FAULTS, ARCHITECTURE = "VA_FAKE_FAULT", "VA_FAKE_ARCHITECTURE"
PASSED = (Finding("decode", "simple", milliseconds=(10.0,)), Finding("decode", "mma_sync", milliseconds=(5.0,)))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the records lie; nothing is known, and the environment decides nothing."""
    for name in (VARIABLE, FAULTS, ARCHITECTURE, *(phase.variable for phase in PHASES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VA_EXPORT_CACHE", str(tmp_path / "cache"))
    _forget(monkeypatch)
    return tmp_path / "cache" / "selftest"


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process."""
    monkeypatch.setattr(prove, "_PROVEN", {})
    monkeypatch.setattr(prove, "_TAKEN", {})


@pytest.fixture
def library(fake_device: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield fake_device
    monkeypatch.undo()
    for phase in PHASES:
        kernels.select_kernel(kernels.bind(load_library(fake_device)), 0, phase, "simple")


def the_record(cache: Path) -> Record:
    (path,) = cache.glob("*.json")
    return read(path, Record, what="record", fix="")


def keep(library: Path, cache: Path, **changes: Any) -> Path:
    """A finished record of decode, changed, as an earlier process left it."""
    key = prove._key(library, prove.identify(library, 0), SHAPE)
    with prove.locked(key) as store:
        store.save(replace(Record(key, PASSED), **changes))
    (path,) = cache.glob("*.json")
    return path


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


def taken(library: Path, phase: kernels.Phase) -> str:
    return selected_kernel(kernels.bind(load_library(library)), 0, phase)


def test_a_right_and_fast_kernel_is_taken(library: Path, cache: Path) -> None:
    proven = take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert proven.choice == {"decode": "mma_sync"} == {"decode": taken(library, DECODE)}
    assert taken(library, PREFILL) == "simple"  # which was not tested
    assert "decode mma_sync (simple 10000.0 us, mma_sync 5000.0 us)" in proven.line
    record = the_record(cache)
    assert (record.running, len(record.findings)) == (None, 2)
    assert [len(finding.milliseconds) for finding in record.findings] == [20, 20]
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize(
    ("phase", "fault", "said"),
    [
        (DECODE, "element", "an error of"),
        (DECODE, "outside", "writes outside its output"),
        (DECODE, "flicker", ""),  # in whatever check the seventh launch is
        (DECODE, "stale", "does not read kv_length anew"),
        (DECODE, "refuse", "its launch was refused (CUDA error 1)"),
        (DECODE, "crash", "its process ended with SIGABRT"),
        (DECODE, "slow", None),
        (PREFILL, "shape", "q_len 128"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", "none"),
)
def test_a_faulty_kernel_is_not(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, phase: kernels.Phase, fault: str, said: str | None
) -> None:
    monkeypatch.setenv(FAULTS, f"{phase.name}/mma_sync {fault}")
    keep(library, cache, findings=(replace(PASSED[0], phase=phase.name),))
    proven = take_proven_kernels(library, 0, SHAPE, (phase,))
    assert proven.choice == {phase.name: "simple"} == {phase.name: taken(library, phase)}
    _, mma = the_record(cache).findings
    assert mma.passed == (said is None)  # a slow one is right
    assert (said or "") in mma.fault and mma.fault[:160] in proven.line


def test_a_kernel_that_hangs_is_not(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, "decode/mma_sync hang")
    keep(library, cache, findings=PASSED[:1])
    proven = take_proven_kernels(library, 0, SHAPE, (DECODE,), seconds=5.0)
    assert proven.choice == {"decode": "simple"}
    assert "it hangs" in the_record(cache).findings[1].fault


def test_a_crash_does_not_keep_later_kernels_from_their_test(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Hopper, whose own kernel comes last."""
    monkeypatch.setenv(ARCHITECTURE, "90")
    monkeypatch.setattr(
        prove.kernels, "kernels_of", lambda *_: ("simple", "mma_sync", "tensor_core")
    )  # this process has loaded the library for another GPU
    monkeypatch.setattr(prove.kernels, "select_kernel", lambda *_: None)
    monkeypatch.setenv(FAULTS, "prefill/mma_sync crash")
    keep(library, cache, findings=(replace(PASSED[0], phase="prefill"),))
    take_proven_kernels(library, 0, SHAPE, (PREFILL,))
    record = the_record(cache)
    assert [finding.passed for finding in record.findings] == [True, False, True]
    assert record.choice(PREFILL) == "tensor_core"


def test_no_answer_where_every_kernel_is_wrong(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, "decode/simple element,decode/mma_sync element")
    with refused("self-test", "simple: an error of", "mma_sync: an error of", "Emulated GPU"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))


@pytest.mark.parametrize("is_wrong", [False, True])
def test_the_score_has_the_same_gate(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, is_wrong: bool
) -> None:
    faults = "products/tensor_core element" + (",products/simple element" if is_wrong else "")
    monkeypatch.setenv(FAULTS, faults)
    proven = take_proven_kernels(library, 0, SHAPE, (PRODUCTS,))
    assert proven.choice == {"products": "simple"}
    assert proven.score_passed == (not is_wrong)
    assert ("the score on the host" in proven.line) == is_wrong
    assert "a score is off by" in the_record(cache).findings[1].fault


def test_what_is_known_is_not_tested_again(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(library, cache)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert take_proven_kernels(library, 0, SHAPE, (DECODE,)).choice == {"decode": "mma_sync"}
    path.unlink()  # what this process knows, it knows
    assert "tested before" in take_proven_kernels(library, 0, SHAPE, (DECODE,)).line
    monkeypatch.setenv(VARIABLE, "again")
    with pytest.raises(AssertionError, match="a process was started"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))


@pytest.mark.parametrize(
    "change", [{"head_dim": 32}, {"value_head_dim": 32}, {"dtype": "bfloat16"}, {"query_heads": 4}]
)
def test_another_shape_is_tested_for_itself(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    keep(library, cache)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(AssertionError, match="a process was started"):
        take_proven_kernels(library, 0, replace(SHAPE, **change), (DECODE,))


def test_a_test_that_took_the_machine_down_is_not_tried_again(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(library, cache, findings=PASSED[:1], running=("decode", "mma_sync"))
    monkeypatch.setattr(subprocess, "Popen", no_process)
    proven = take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert proven.choice == {"decode": "simple"}
    assert "did not end" in proven.line
    assert read(path, Record, what="record", fix="").running is None
    # Where it was the plain kernel's turn, the plain one is what is left.
    _forget(monkeypatch)
    keep(library, cache, findings=(), running=("decode", "simple"))
    stopped = Finding("decode", "mma_sync", fault="wrong", is_known=False)
    keep(library, cache, findings=(stopped,), running=("decode", "simple"))
    assert take_proven_kernels(library, 0, SHAPE, (DECODE,)).choice == {"decode": "simple"}


def test_running_is_written_before_a_kernel_is_run(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Record] = []
    monkeypatch.setattr(Store, "save", lambda _, record: written.append(record))
    take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert [record.running for record in written] == [("decode", "simple"), None, ("decode", "mma_sync"), None]


def test_an_interrupt_says_nothing_of_the_kernel(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prove, "event", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert (the_record(cache).running, the_record(cache).findings) == (None, ())


def test_a_home_that_cannot_be_written_keeps_it_in_memory(
    library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VA_EXPORT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(prove, "_test", lambda *_: Record({}, PASSED))
    assert take_proven_kernels(library, 0, SHAPE, (DECODE,)).choice == {"decode": "mma_sync"}
    monkeypatch.setattr(prove, "_test", no_process)
    assert "tested before" in take_proven_kernels(library, 0, SHAPE, (DECODE,)).line


def test_a_damaged_record_is_none(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(library, cache).write_text("{")
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(AssertionError, match="a process was started"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))


def test_it_can_be_left_out(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(library, cache)
    monkeypatch.setenv(VARIABLE, "0")
    assert take_proven_kernels(library, 0, SHAPE) == ProvenKernels(
        {phase.name: "simple" for phase in PHASES},
        False,
        "kernels on GPU 0 (no self-test (VA_EXPORT_SELFTEST=0)): decode simple; prefill simple; products simple;"
        " the score on the host",
    )


def test_a_record_may_come_with_the_application(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped, record = tmp_path / "shipped.json", read(keep(library, cache), Record, what="record", fix="")
    shipped.write_bytes(encode(replace(record, key={**record.key, "gpu": "another of its kind"})))
    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setenv(VARIABLE, str(shipped))
    proven = take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert proven.choice == {"decode": "mma_sync"} and str(shipped) in proven.line
    shipped.write_bytes(encode(replace(record, key={**record.key, "driver": "older"})))
    with refused(shipped, "driver", "older"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))
    shipped.write_bytes(encode(replace(record, running=("decode", "mma_sync"))))
    with refused(shipped):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))
    monkeypatch.setenv(VARIABLE, "yes")
    with refused(VARIABLE, "yes"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))


def test_two_models_take_what_is_right_for_both(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(library, cache)
    assert take_proven_kernels(library, 0, SHAPE, (DECODE,)).choice == {"decode": "mma_sync"}
    wrong = replace(PASSED[1], fault="wrong", milliseconds=())
    monkeypatch.setattr(prove, "_test", lambda *_: Record({}, (PASSED[0], wrong)))
    other = take_proven_kernels(library, 0, replace(SHAPE, head_dim=32), (DECODE,))
    assert other.choice == {"decode": "simple"}
    assert take_proven_kernels(library, 0, SHAPE, (DECODE,)).choice == {"decode": "simple"}


def test_the_environment_comes_first(library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(library, cache)
    monkeypatch.setenv(DECODE.variable, "simple")
    proven = take_proven_kernels(library, 0, SHAPE, (DECODE,))
    assert proven.choice == {"decode": "simple"} and "by VA_EXPORT_ATTENTION_KERNEL" in proven.line
    monkeypatch.setenv(DECODE.variable, "fast")
    with refused(DECODE.variable, "fast"):
        take_proven_kernels(library, 0, SHAPE, (DECODE,))


def test_a_gpu_that_is_not_there(library: Path, cache: Path) -> None:
    with refused("plugin library", "GPU 7"):
        take_proven_kernels(library, 7, SHAPE)
