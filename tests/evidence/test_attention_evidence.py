"""The checks, peers and targets of the attention evidence where there is no GPU: each must be able to fail."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from va_export.evidence import attention_checks as checks  # noqa: E402
from va_export.evidence.attention_cases import (  # noqa: E402
    DTYPES,
    GAINS,
    HEAD_DIMS,
    HEADS,
    LENGTHS,
    AttentionCase,
    directed_cases,
    float64_answer,
    half_precision_math,
    make_problem,
    sampled_cases,
)
from va_export.evidence.attention_peers import PeerInputs, decode_peers, prefill_peers  # noqa: E402
from va_export.evidence.attention_targets import attention_targets  # noqa: E402
from va_export.evidence.attention_timings import (  # noqa: E402
    BASE,
    BEST,
    DECODE,
    OFF,
    PREFILL,
    _row,
    decode_cases,
    kv_bytes,
    prefill_cases,
)
from va_export.evidence.document import begin_evidence, check_evidence  # noqa: E402
from va_export.evidence.workers import run_worker  # noqa: E402

SMALL = [AttentionCase(70, 70, head_dim=64), AttentionCase(3, 9, 3, kv_length=(0, 100, 4), dtype="float32")]
NO_CEILINGS = {"matmul_bf16_tflops": None, "copy_tb_per_s": None}
CPU = {"name": "cpu", "driver": None, "cuda": None, "torch": None}


def test_hundreds_of_cases_and_every_value_of_every_axis() -> None:
    cases = [*sampled_cases(), *directed_cases()]
    assert len(set(cases)) == len(cases) > 300
    assert len(set(map(str, cases))) == len(cases), "names are those of rows"
    sampled = sampled_cases()
    for axis, values in (
        (lambda c: c.q_len, LENGTHS),
        (lambda c: c.kv_len, LENGTHS),
        (lambda c: (c.query_heads, c.kv_heads), HEADS),
        (lambda c: c.head_dim, HEAD_DIMS),
        (lambda c: c.dtype, DTYPES),
        (lambda c: c.gains, GAINS),
        (lambda c: c.causal, (True, False)),
        (lambda c: c.batch > 1, (True, False)),
    ):
        counts = Counter(map(axis, sampled))
        assert set(counts) == set(values)
        assert min(counts.values()) >= 25
    pairs = {(case.head_dim, case.dtype) for case in sampled}
    assert len(pairs) == len(HEAD_DIMS) * len(DTYPES)
    assert {case.q_len for case in directed_cases()} >= {*range(1, 6), 8, 11, 15, 16}


def test_what_lies_beyond_the_length_is_planted() -> None:
    case = AttentionCase(2, 6, 2, kv_length=(6, 2))
    problem = make_problem(case, "cpu")
    assert problem.key[0].isfinite().all() and problem.value_gain[0].isfinite().all()
    for tensor in (problem.key[1, :, 2:], problem.value[1, :, 2:], problem.key_log_gain[1, 2:]):
        assert not tensor.isfinite().any()
    expected, magnitude = float64_answer(problem)
    assert expected.isfinite().all() and (magnitude >= expected.abs() - 1e-12).all()


def rows_of(monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Any]) -> list[dict[str, Any]]:
    monkeypatch.setattr(checks, "attention_on", lambda device: attention)
    return [*checks.check_cases("eager", SMALL, "cpu"), *checks.check_empty_rows("eager", "cpu")]


def test_the_reference_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(monkeypatch, checks.attention_on("cpu"))
    assert len(rows) == 3 + 3
    assert all(row["passed"] for row in rows), [row for row in rows if not row["passed"]]
    check_evidence({**begin_evidence(CPU, "0" * 40, NO_CEILINGS), "checks": rows})


eager = checks.attention_on("cpu")


def without_gains(*inputs: Any, is_causal: bool) -> Any:
    query, key, value, key_log_gain, value_gain, length = inputs
    return eager(query, key, value, torch.zeros_like(key_log_gain), torch.ones_like(value_gain), length,
                 is_causal=is_causal)  # fmt: skip


def aligned_to_the_top(*inputs: Any, is_causal: bool) -> Any:
    *tensors, length = inputs
    return eager(*tensors, length, is_causal=is_causal and inputs[0].shape[2] == inputs[1].shape[2])


def leaking(*inputs: Any, is_causal: bool) -> Any:
    return eager(*inputs[:5], None, is_causal=is_causal)


def rounding_twice_as_much(*inputs: Any, is_causal: bool) -> Any:
    output = eager(*inputs, is_causal=is_causal)
    return output * (1 + 3e-3 * torch.sin(output.float() * 1e4)).to(output.dtype)


class Unsteady:
    """Right, and another last bit every time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *inputs: Any, is_causal: bool) -> Any:
        self.calls += 1
        output = eager(*inputs, is_causal=is_causal)
        output[-1, -1, -1, -1] *= (
            1 + 2e-7 * (self.calls % 2) + 1e-3 * (self.calls % 2) * (output.dtype != torch.float32)
        )
        return output


@pytest.mark.parametrize(
    "attention",
    [without_gains, aligned_to_the_top, leaking, rounding_twice_as_much, Unsteady()],
    ids=lambda form: getattr(form, "__name__", type(form).__name__),
)
def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Any]) -> None:
    rows = rows_of(monkeypatch, attention)
    assert not all(row["passed"] for row in rows)
    check_evidence({**begin_evidence(CPU, "0" * 40, NO_CEILINGS), "checks": rows})


def test_error_is_compared_with_plain_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain float16 itself has a ratio of 1; twice its error is too much."""
    problem = make_problem(SMALL[0], "cpu")
    expected, _ = float64_answer(problem)
    plain = half_precision_math(problem).double()
    numbers = {"dtype": "float16"}
    same = checks._over_math("x", problem, plain, expected, numbers)
    worse = checks._over_math("x", problem, expected + 2 * (plain - expected), expected, numbers)
    assert (same["passed"], worse["passed"]) == (True, False)
    assert same["max_rel_err"] == pytest.approx(1) and worse["max_rel_err"] == pytest.approx(2)


@pytest.mark.parametrize("q_len", [1, 48])
def test_peers_compute_what_their_names_say(q_len: int) -> None:
    case = AttentionCase(q_len, 48, 2, 4, 2, 64, dtype="float32", packed=False)
    problem = make_problem(case, "cpu")
    inputs = PeerInputs(*problem.inputs[:5])
    anchored, _ = float64_answer(problem)
    plain, _ = float64_answer(make_problem(AttentionCase(**{**vars(case), "gains": "none"}), "cpu"))
    ran = []
    for name, make in (prefill_peers() if q_len > 1 else decode_peers()).items():
        try:
            output = make(inputs)()
        except RuntimeError:
            continue  # a backend that this machine has not
        torch.testing.assert_close(output.double(), plain if name.endswith("_plain") else anchored, rtol=0, atol=2e-5)
        ran.append(name)
    expected = {"sdpa_flash_plain", "sdpa_flash_augmented_bias", "flex_attention_bias"}
    assert set(ran) >= (expected if q_len > 1 else {"sdpa_flash_plain", "flex_attention_plain"})


def test_a_peer_of_another_result_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(inputs: PeerInputs) -> Any:
        raise RuntimeError("no kernel\nfor this")

    peers = {"wrong_bias": lambda inputs: lambda: 2 * inputs.query, "refuses_plain": refuses}
    row = _row(PREFILL, prefill_cases(tiny=True)[0], "eager", "cpu", peers, float("inf"))
    assert row["peers_us"] == {"wrong_bias": None, "refuses_plain": None}
    assert "computes another result" in row["notes"]["wrong_bias"]
    assert row["notes"]["refuses_plain"] == "RuntimeError: no kernel"
    late = _row(PREFILL, prefill_cases(tiny=True)[0], "eager", "cpu", peers, 0.0)
    assert late["ours_us"] is None and "left out" in late["notes"]["ours"]
    check_evidence({**begin_evidence(CPU, "0" * 40, NO_CEILINGS), "timings": [row, late]})


def measured_run(speed: float) -> list[dict[str, Any]]:
    """Timing rows of a made-up GPU: peers take 100 µs at any size, ours 100 / speed."""
    rows = []
    for op, cases, variants in (
        (PREFILL, prefill_cases(tiny=False), (BEST, BASE, f"{BEST}, {OFF}")),
        (DECODE, decode_cases(tiny=False), (BEST,)),
    ):
        for case in cases:
            for variant in variants:
                microseconds = 100 / speed
                row = {"op": op, "variant": variant, "shape": case.shape, "dtype": case.dtype, "ours_us": microseconds}
                row |= {"ours_range_us": [microseconds] * 2, "peers_us": {"a_plain": 100.0, "b_plain": 120.0}}
                row["peers_us"] |= {"c_bias": 150.0, "d_bias": None}
                row["notes"] = {"d_bias": "refused"}
                row["ours_tflops"], row["ours_tb_per_s"] = 650 * speed, 4 * speed
                rows.append(row)
    return rows


@pytest.mark.parametrize(("speed", "met"), [(10.0, True), (0.5, False)])
def test_targets_are_read_off_the_run(speed: float, met: bool) -> None:
    rows = attention_targets(measured_run(speed), 4.3, "9.0")
    assert len(rows) == 2 + 4 + 3 + 3
    relative = [row for row in rows if "over without" not in row["name"] and "in a cache of 64k" not in row["name"]]
    assert {row["passed"] for row in relative if "mma.sync" not in row["name"]} == {met}
    assert all(row["passed"] for row in rows if row not in relative), "equal times"
    document = {**begin_evidence(CPU, "0" * 40, NO_CEILINGS), "timings": measured_run(speed), "targets": rows}
    check_evidence(document)
    by_name = {row["name"]: row["measured"] for row in rows}
    assert by_name["prefill 16k: speed over the fastest plain"] == pytest.approx(speed)
    assert by_name["prefill 2048: speed over the best biased peer"] == pytest.approx(1.5 * speed)


def test_absolute_targets_are_hoppers_and_nothing_measured_is_nothing_met() -> None:
    assert len(attention_targets(measured_run(10.0), 4.3, "8.6")) == 2 + 4 + 3
    assert not any(row["passed"] for row in attention_targets([], None, "9.0"))


def test_bytes_of_keys_and_values() -> None:
    shape = AttentionCase(1, 65536, 1, 32, 8, 128).shape
    assert kv_bytes(shape, "float16") == 256 << 20
    assert kv_bytes({**shape, "kv_length": [2048]}, "float16") == 8 << 20


WORKER = """
import os, sys, pathlib
from va_export.evidence.document import check_row
from va_export.evidence.workers import write_rows
def rows():
    yield "checks", check_row("first", True)
    {last}
write_rows(pathlib.Path(sys.argv[1]), rows())
"""


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("yield 'checks', check_row('second', True)", None),
        ("raise RuntimeError('an illegal memory access')", "an illegal memory access"),
        ("os.abort()", "status -6"),
        ("os._exit(0)", "status 0"),
    ],
)
def test_a_worker_that_dies_leaves_its_rows_and_a_failure(tmp_path: Path, last: str, said: str | None) -> None:
    document = begin_evidence(CPU, "0" * 40, NO_CEILINGS)
    command = [sys.executable, "-c", WORKER.format(last=last), str(tmp_path / "rows.jsonl")]
    run_worker("part", command, tmp_path / "rows.jsonl", document)
    first, second = document["checks"]
    assert first["name"] == "first" and first["passed"]
    if said is None:
        assert second["name"] == "second"
    else:
        assert (second["name"], second["passed"]) == ("part: ran to its end", False)
        assert said in second["message"]
    check_evidence(document)


def test_a_worker_that_hangs_is_stopped(tmp_path: Path) -> None:
    document = begin_evidence(CPU, "0" * 40, NO_CEILINGS)
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]
    run_worker("part", command, tmp_path / "rows.jsonl", document, timeout_seconds=0.1)
    assert [row["passed"] for row in document["checks"]] == [False]
    assert "ran too long" in document["checks"][0]["message"]


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    """A program under a sanitizer must not run on beside what is timed next."""
    script = "import pathlib, subprocess, sys; child = subprocess.Popen(['sleep', '600'])"
    script += "; pathlib.Path(sys.argv[1]).write_text(str(child.pid))"
    command = [sys.executable, "-c", script, str(tmp_path / "pid")]
    run_worker("part", command, tmp_path / "rows.jsonl", begin_evidence(CPU, "0" * 40, NO_CEILINGS))
    status = Path("/proc", (tmp_path / "pid").read_text(), "stat")

    def is_gone() -> bool:
        try:
            return status.read_text().rsplit(")", 1)[1].split()[0] in "ZX"  # nobody may have collected it yet
        except (FileNotFoundError, ProcessLookupError):
            return True

    polls = 0
    while not is_gone() and polls < 3000:  # the signal was sent before; without it the wait would be ten minutes
        time.sleep(0.01)
        polls += 1
    assert is_gone()
