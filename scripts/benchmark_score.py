#!/usr/bin/env python3
"""Times the subspace score on the CPU against the paper's literal solver, in the same run, and compares their answers.

    python scripts/benchmark_score.py [tokens ...] [--json engines/evidence] [--long 16384 [--long-iterations 300]]

512, 1024 and 2048 tokens by default, with 64 principal components and with none, in float32 and float64. Each line is
the whole function (projection, solver, clustering, score): the median of runs that alternate with the textbook's. The
textbook is NumPy in float64, a dense solve an iteration; its time is extrapolated from a few iterations, for as many as
ours took. Answers: up to 1024 tokens, the textbook is run to its end once (float64: C within 1e-6 of its; float32:
the score within 2e-3); beyond, C is compared after those few iterations. Peak memory is that of a process of its own.
--long runs the whole function, float32 and 64 components, for memory and iterations a second; without the textbook. All
10 000 iterations of 16 384 tokens take half an hour on two cores; memory needs no more than a few.

    python scripts/benchmark_score.py --paper 2048x4096 [--paper-iterations 100] [--paper-json FILE.json]

times the paper's form alone, float32 and no components: what a score takes before its first iteration, in an iteration
and after the last, and beside every few iterations, in turns, two float32 products of N × N matrices in NumPy, which is
what an iteration's arithmetic is without its zeros.

The exit code is 1 where an answer differs or a target is missed. Tokens are synthetic: patches of eight-frame clips
that drift on planes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import spectral_clustering
from sklearn.decomposition import PCA

from va_export.anchor import subspace_score
from va_export.anchor.sharing import sharing_score
from va_export.anchor.textbook import textbook_self_expression
from va_export.evidence.device import current_commit, describe_cpu
from va_export.evidence.document import begin_evidence, check_row, failures, target_row, write_evidence
from va_export.evidence.processes import high_water_mark

FRAMES, DIM, SUBSPACES, REPEATS = 8, 1024, 24, 3
FEW = 6  # iterations of the textbook's that are timed; two more or fewer give its time before the first
WHOLE = 1024  # tokens up to which the textbook is run to its end
TARGET_TOKENS, TARGET_RANK, TARGET_RATIO = 1024, 64, 60.0
MEMORY_GB = 16.0
MOST_ITERATIONS = 10000  # the paper's
TOLERANCES = {"float32": 2e-3, "float64": 1e-6}
PEER = "textbook_numpy_float64_bias"
REPOSITORY = Path(__file__).resolve().parents[1]

Array = np.ndarray[Any, Any]


def video_tokens(n: int, dim: int = DIM) -> Array:
    """[n, dim] float32: patches of 12 kinds, each on its own plane of rank 4, moving a little from frame to frame."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, n // FRAMES)
    planes, centres = rng.standard_normal((12, 4, dim)) / 2, rng.standard_normal((12, dim))
    place = rng.standard_normal((n // FRAMES, 4))
    frames = []
    for _ in range(FRAMES):
        place += 0.1 * rng.standard_normal(place.shape)
        frame = np.einsum("pr,prd->pd", place, planes[kind]) + centres[kind]
        frames.append(frame + 0.05 * rng.standard_normal(frame.shape))
    return np.concatenate(frames).astype(np.float32)


def seconds(function: Any, *arguments: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def scored(tokens: Array, rank: int, dtype: Any, **options: Any) -> Any:
    return subspace_score(tokens, SUBSPACES, rank, dtype=dtype, return_details=True, **options)


def clusters(expression: Array) -> Array:
    """scikit-learn's labels [N] of C [N, N]."""
    size = np.abs(expression)
    labels = spectral_clustering(size + size.T, n_clusters=SUBSPACES, assign_labels="discretize", random_state=0)
    return np.asarray(labels, dtype=np.int64)


class Textbook:
    """The literal form on some tokens: its time, and its answer."""

    def __init__(self, tokens: Array, rank: int) -> None:
        self.tokens, self.rank = tokens, rank
        self.exact = tokens.astype(np.float64)

    def project(self) -> Array:
        if not self.rank:
            return self.exact
        return np.asarray(PCA(self.rank, svd_solver="full").fit_transform(self.exact))

    def seconds(self, iterations: int, expression: Array) -> float:
        """Of `iterations`, extrapolated, and of clustering C [N, N]."""
        projection, projected = seconds(self.project)
        setup_and_two, _ = seconds(textbook_self_expression, projected, max_iter=2)
        more, _ = seconds(textbook_self_expression, projected, max_iter=2 + FEW)
        clustering, _ = seconds(clusters, expression.astype(np.float64))
        return projection + setup_and_two + (iterations - 2) * (more - setup_and_two) / FEW + clustering

    def differences(self) -> dict[str, tuple[str, float]]:
        """By type: what was compared with the textbook's, and the largest difference."""
        projected = self.project()
        if len(self.tokens) > WHOLE:
            few = textbook_self_expression(projected, max_iter=2 + FEW)
            of = f"C after {2 + FEW} iterations"
            ours = {dtype: scored(self.tokens, self.rank, dtype, max_iter=2 + FEW) for dtype in TOLERANCES}
            return {
                dtype: (of, float(np.abs(one.self_expression - few.self_expression).max()))
                for dtype, one in ours.items()
            }
        whole = textbook_self_expression(projected)
        expected = sharing_score(whole.self_expression.sum(axis=1), clusters(whole.self_expression))
        exact = scored(self.tokens, self.rank, "float64")
        assert exact.iterations == whole.iterations, (exact.iterations, whole.iterations)
        return {
            "float64": ("C", float(np.abs(exact.self_expression - whole.self_expression).max())),
            "float32": (
                "score",
                float(np.abs(scored(self.tokens, self.rank, "float32").sharing_score - expected).max()),
            ),
        }


def measure_case(n: int, rank: int) -> dict[str, Any]:
    """Times in seconds, iterations and differences, both types of one case."""
    tokens = video_tokens(n)
    textbook = Textbook(tokens, rank)
    subspace_score(tokens[:64], SUBSPACES)  # loads the libraries
    case: dict[str, Any] = {"differences": textbook.differences()}
    for dtype in TOLERANCES:
        ours, theirs = [], []
        for _ in range(REPEATS):
            took, details = seconds(scored, tokens, rank, dtype)
            ours.append(took)
            theirs.append(textbook.seconds(details.iterations, details.self_expression))
        case[dtype] = {"ours": ours, "textbook": theirs, "iterations": details.iterations}
    return case


def measure_memory(n: int, rank: int, dtype: str, max_iter: int = MOST_ITERATIONS) -> dict[str, Any]:
    """Peak bytes of one call above what the process had before it, all of it, and the time."""
    tokens = video_tokens(n)
    subspace_score(tokens[:64], SUBSPACES, dtype=dtype)  # type: ignore[call-overload]
    before = high_water_mark(os.getpid())  # getrusage's count begins with the memory of the process that started this
    took, details = seconds(scored, tokens, rank, dtype, max_iter=max_iter)
    peak = high_water_mark(os.getpid())
    return {
        "peak": peak - before,
        "process_peak": peak,
        "seconds": took,
        "iterations": details.iterations,
        "converged": details.converged,
    }


def measure_paper(n: int, dim: int, max_iter: int) -> dict[str, Any]:
    """Seconds and ratios of one call, and what it told of its iterations when half of them were done."""
    tokens = video_tokens(n, dim)
    subspace_score(tokens[:64], SUBSPACES)  # loads the libraries
    one, other, product = (np.random.default_rng(i).standard_normal((n, n), dtype=np.float32) for i in range(3))
    told: list[tuple[int, int | None]] = [(0, None)]
    iteration: list[float] = []
    products: list[float] = []
    start = latest = time.perf_counter()
    aside = 0.0

    def on_progress(done: int, expected: int | None) -> None:
        nonlocal latest, aside
        iteration.append((time.perf_counter() - latest) / (done - told[-1][0]))
        told.append((done, expected))
        begin = time.perf_counter()
        for _ in range(2):
            np.matmul(one, other, out=product)
        latest = time.perf_counter()
        products.append(latest - begin)
        aside += latest - begin

    details = scored(tokens, 0, "float32", max_iter=max_iter, on_progress=on_progress)
    end = time.perf_counter()
    set_up = told[1][0] * (iteration[0] - iteration[1])  # the first report comes after both
    half = next(expected for done, expected in told if 2 * done >= details.iterations)
    return {
        "tokens": n,
        "dim": dim,
        "iterations": details.iterations,
        "converged": details.converged,
        "seconds": round(end - start - aside, 2),
        "seconds_before_the_first_iteration": round(set_up, 2),
        "seconds_after_the_last": round(end - latest, 2),
        "milliseconds_an_iteration": spread([1e3 * one for one in iteration[1:]]),
        "milliseconds_of_two_products": spread([1e3 * one for one in products[1:]]),
        "iteration_over_two_products": spread([a / b for a, b in zip(iteration[1:], products[1:], strict=True)]),
        "first_seconds_over_two_products": round(set_up / statistics.median(products), 1),
        "iterations_told_halfway": half if details.converged else None,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


def benchmark_paper(size: str, max_iter: int, evidence: Path | None) -> None:
    """Print a measurement, and write it where it is asked for."""
    n, dim = map(int, size.split("x"))
    found = {
        "commit": current_commit(REPOSITORY),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        **in_a_process("--paper-case", n, dim, max_iter),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if evidence is not None:
        evidence.parent.mkdir(parents=True, exist_ok=True)
        evidence.write_text(text + "\n", encoding="utf-8")


def in_a_process(*arguments: object) -> Any:
    """One of the measuring functions in a process of its own, where peak memory starts from nothing."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def timing_row(n: int, rank: int, dtype: str, case: dict[str, Any]) -> dict[str, Any]:
    def in_microseconds(samples: list[float]) -> tuple[float, list[float]]:
        return 1e6 * statistics.median(samples), [1e6 * min(samples), 1e6 * max(samples)]

    ours, ours_range = in_microseconds(case["ours"])
    theirs, theirs_range = in_microseconds(case["textbook"])
    return {
        "op": "subspace_score",
        "shape": {"tokens": n, "dim": DIM, "pca_rank": rank, "iterations": case["iterations"]},
        "dtype": dtype,
        "ours_us": ours,
        "ours_range_us": ours_range,
        "peers_us": {PEER: theirs},
        "peers_range_us": {PEER: theirs_range},
        "notes": {PEER: f"extrapolated from {FEW} iterations"},
        "repeats": REPEATS,
    }


def benchmark(document: dict[str, Any], n: int, rank: int) -> None:
    """Print two lines and add their rows."""
    case = in_a_process("--case", n, rank)
    for dtype, tolerance in TOLERANCES.items():
        row = timing_row(n, rank, dtype, case[dtype])
        document["timings"].append(row)
        of, difference = case["differences"][dtype]
        name = f"{of} of {n} tokens, PCA {rank or 'none'}, {dtype}, against the textbook"
        document["checks"].append(
            check_row(
                name, difference <= tolerance, shape=row["shape"], dtype=dtype, max_rel_err=difference,
                tolerance=tolerance,
            )
        )  # fmt: skip
        ratio = row["peers_us"][PEER] / row["ours_us"]
        if (n, rank, dtype) == (TARGET_TOKENS, TARGET_RANK, "float32"):
            name = f"subspace_score on the CPU against the textbook, {n} tokens, PCA {rank}, {dtype}"
            document["targets"].append(target_row(name, ratio, ">=", TARGET_RATIO, "times"))
        memory = in_a_process("--memory", n, rank, dtype)
        low, high = (bound / 1e6 for bound in row["ours_range_us"])
        print(
            f"{n:6d} {rank or 'none':>5} {dtype:>8} {row['shape']['iterations']:6d} {row['ours_us'] / 1e6:9.3f}"
            f" [{low:.3f}, {high:.3f}] {row['peers_us'][PEER] / 1e6:9.1f} {ratio:7.1f} {memory['peak'] / 2**20:9.0f}"
            f"   {of}: {difference:.1e} (at most {tolerance:g})",
            flush=True,
        )


def measure_long(document: dict[str, Any], n: int, max_iter: int) -> None:
    memory = in_a_process("--memory", n, TARGET_RANK, "float32", max_iter)
    peak = memory["process_peak"] / 1e9
    name = (
        f"peak memory of the process, {n} tokens, PCA {TARGET_RANK}, float32, {memory['iterations']} iterations"
        f" in {memory['seconds']:.0f} s"
    )
    document["targets"].append(target_row(name, peak, "<=", MEMORY_GB, "GB"))
    print(
        f"{n} tokens, PCA {TARGET_RANK}, float32: {memory['iterations']} iterations"
        f"{'' if memory['converged'] else ' (not converged)'} in {memory['seconds']:.0f} s,"
        f" {memory['iterations'] / memory['seconds']:.2f} a second with projection and clustering; peak {peak:.1f} GB",
        flush=True,
    )


def cpu_name() -> str:
    """As /proc/cpuinfo has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def main() -> int:
    """A process for each case: peak memory never falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tokens", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write <cpu>-score.json there")
    parser.add_argument("--long", type=int, metavar="TOKENS", help="also run this many, for memory")
    parser.add_argument("--long-iterations", type=int, default=MOST_ITERATIONS, help="of --long at the most")
    parser.add_argument("--paper", metavar="NxD", help="time so many tokens of so many features, no PCA, alone")
    parser.add_argument("--paper-iterations", type=int, default=MOST_ITERATIONS, help="of --paper at the most")
    parser.add_argument("--paper-json", type=Path, metavar="FILE", help="also write --paper's result there")
    parser.add_argument("--paper-case", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.paper_case:
        print(json.dumps(measure_paper(*given.paper_case)))
        return 0
    if given.paper:
        benchmark_paper(given.paper, given.paper_iterations, given.paper_json)
        return 0
    if given.case:
        print(json.dumps(measure_case(*given.case)))
        return 0
    if given.memory:
        n, rank, dtype, *max_iter = given.memory
        print(json.dumps(measure_memory(int(n), int(rank), dtype, *map(int, max_iter))))
        return 0

    device = {**describe_cpu(), "name": cpu_name()}
    document = begin_evidence(
        device, current_commit(REPOSITORY), {"matmul_bf16_tflops": None, "copy_tb_per_s": None}
    )  # fmt: skip
    print(
        "tokens   PCA    dtype  iter.    ours s [min, max]  textbook s (extrapolated)  ratio  our peak MiB   answer",
        flush=True,
    )
    for n in given.tokens:
        for rank in (TARGET_RANK, 0):
            benchmark(document, n, rank)
    if given.long:
        measure_long(document, given.long, given.long_iterations)
    if given.json:
        print(write_evidence(document, given.json, "score"))
    for failure in failures(document):
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures(document) else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="subspace_score stopped|Graph is not fully connected")
    sys.exit(main())
