"""SubspaceScore's rows of evidence: right against float64, how fast beside the paper's form, and the targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from va_export.errors import VaExportError
from va_export.evidence.document import Row, check_row, target_row
from va_export.evidence.score_cases import (
    TEXTBOOK_ITERATIONS,
    ScoreCase,
    eager_details,
    textbook_seconds,
    video_tokens,
)
from va_export.evidence.timing import Timing, time_cuda, time_host
from va_export.evidence.workplace import with_variable

if TYPE_CHECKING:
    from torch import Tensor

# float32 may stop the iteration a step apart from float64: a row sum of C then differs by less than eps = 2e-4, and the
# score by that over the range of the row sums, for which 2e-3 allows a tenth.
SCORE_TOLERANCE = 2e-3
OP = "subspace_score"
TEXTBOOK, EAGER = "textbook_float64_bias", "eager_float32_bias"
CHECKED = [ScoreCase(8, 640, 0), ScoreCase(8, 1024, 64, dtype="bfloat16"), ScoreCase(4, 4096, 0, dtype="float32")]
TIMED = [ScoreCase(8, 4096, 64), ScoreCase(8, 4096, 0), *(ScoreCase(frames, 4096, 64) for frames in (64, 16, 32))]
TINY = [ScoreCase(4, 24, 0, 16, "float32", 3), ScoreCase(4, 48, 6, 16, "float32", 3)]
TARGETS = [("8 frames, PCA 64", TIMED[0], 60.0), ("8 frames, no PCA", TIMED[1], 150.0), ("64 frames", TIMED[2], 3000.0)]


def shape_of(case: ScoreCase, iterations: int | None) -> Row:
    """As the form of evidence has it."""
    return {"tokens": case.tokens, "dim": case.dim, "pca_rank": case.pca_rank, "iterations": iterations}


def same_partition(labels: Any, others: Any) -> bool:
    """Whether two labellings are equal up to the numbering."""
    pairs = set(zip(labels.tolist(), others.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(others.tolist()))


def check_rows(device: str, *, tiny: bool) -> Iterator[Row]:
    """Score, labels and iterations of each case against float64, with either way of multiplying; on a GPU also equal
    bits from run to run and from a CUDA graph."""
    from va_export.native.subspace_score import PRODUCTS, PRODUCTS_VARIABLE

    for case in TINY if tiny else CHECKED:
        tokens = video_tokens(case, device)
        try:
            with warnings.catch_warnings(record=True):
                exact = eager_details(tokens, case.settings, "float64")
        except (VaExportError, RuntimeError) as error:
            yield check_row(f"score of {case}", False, shape=shape_of(case, None), message=str(error).splitlines()[0])
            continue
        for products in PRODUCTS:
            with with_variable(PRODUCTS_VARIABLE, products):
                yield from compared_rows(case, tokens, exact, f"{case}, {products} products")


def compared_rows(case: ScoreCase, tokens: Tensor, exact: Any, name: str) -> Iterator[Row]:
    """One case as the environment has it computed, against `exact`."""
    try:
        ours = score(tokens, case)
    except (VaExportError, RuntimeError) as error:
        yield check_row(f"score of {name}", False, shape=shape_of(case, None), message=str(error).splitlines()[0])
        return
    shape = shape_of(case, int(ours.iterations))
    worst = float((ours.sharing_score.double() - exact.sharing_score).abs().max())
    numbers = {"max_rel_err": worst, "tolerance": SCORE_TOLERANCE}
    yield check_row(f"score of {name}", worst <= SCORE_TOLERANCE, shape=shape, dtype=case.dtype, **numbers)
    yield check_row(f"labels of {name}", same_partition(ours.labels, exact.labels), shape=shape, dtype=case.dtype)
    apart = abs(int(ours.iterations) - int(exact.iterations))
    message = f"{ours.iterations} iterations, {exact.iterations} in float64"
    yield check_row(f"iterations of {name}", apart <= 1, shape=shape, dtype=case.dtype, message=message)
    if tokens.device.type == "cuda":
        yield from repeated_rows(case, tokens, shape, name)


def repeated_rows(case: ScoreCase, tokens: Tensor, shape: Row, name: str) -> Iterator[Row]:
    """The same bits again, and out of a captured graph, whose launch neither allocates nor waits."""
    import torch

    from va_export.native.subspace_score import subspace_score_cuda

    first = subspace_score_cuda(tokens, case.settings)
    again = subspace_score_cuda(tokens, case.settings)
    equal = torch.equal(first.sharing_score, again.sharing_score) and torch.equal(first.labels, again.labels)
    yield check_row(f"equal bits for {name}", equal, shape=shape, dtype=case.dtype)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured = subspace_score_cuda(tokens, case.settings)
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        yield check_row(f"CUDA graph of {name}", False, shape=shape, message=str(error).splitlines()[0])
        return
    equal = torch.equal(first.sharing_score, captured.sharing_score)
    yield check_row(f"CUDA graph of {name}", equal, shape=shape, dtype=case.dtype)


def score(tokens: Tensor, case: ScoreCase) -> Any:
    """Ours: the kernels on a GPU, the reference elsewhere."""
    from va_export.anchor.cuda_scoring import details_by_kernels

    if tokens.device.type == "cuda":
        return details_by_kernels(tokens, case.settings)
    return eager_details(tokens, case.settings, "float32")


def timing_rows(device: str, *, tiny: bool) -> Iterator[Row]:
    """A row a case, with the paper's form extrapolated and our own eager form beside it, and what either way of
    multiplying takes; `ours_us` has the one that the GPU chooses."""
    from va_export.native.subspace_score import PRODUCTS, PRODUCTS_VARIABLE, subspace_score_cuda

    for case in TINY if tiny else TIMED:
        inputs = [video_tokens(case, device, seed) for seed in range(2)]
        row: Row = {"op": OP, "shape": shape_of(case, None), "dtype": case.dtype, "ours_us": None}
        row |= {"ours_range_us": None, "peers_us": {}, "peers_range_us": {}, "notes": {}}
        queue = partial(subspace_score_cuda, settings=case.settings) if device == "cuda" else partial(score, case=case)
        calls: list[Callable[[], object]] = [partial(queue, one) for one in inputs]
        try:
            ours = _time(calls, device)
            iterations = int(score(inputs[0], case).iterations)
            row |= {"ours_us": ours.median_us, "ours_range_us": ours.range_us, "repeats": len(ours.samples_us)}
            row["shape"] = shape_of(case, iterations)
            row["peers_us"], row["notes"] = peer_times(inputs[0], case, iterations, device)
            for products in PRODUCTS:
                with with_variable(PRODUCTS_VARIABLE, products):
                    row["peers_us"][f"{products}_products_bias"] = _time(calls, device).median_us
        except (VaExportError, RuntimeError) as error:
            row["notes"]["ours"] = str(error).splitlines()[0]
        yield row


def peer_times(tokens: Tensor, case: ScoreCase, iterations: int, device: str) -> tuple[Row, Row]:
    """(microseconds, notes) of the peers."""
    times: Row = {TEXTBOOK: None, EAGER: None}
    notes: Row = {TEXTBOOK: f"extrapolated from {TEXTBOOK_ITERATIONS} iterations to {iterations}; no clustering"}
    try:
        times[TEXTBOOK] = 1e6 * textbook_seconds(tokens, case.settings, iterations)
    except RuntimeError as error:  # a GPU with too little memory for N x N in float64
        notes[TEXTBOOK] = str(error).splitlines()[0]
    try:
        times[EAGER] = _time([lambda: eager_details(tokens, case.settings, "float32")], device).median_us
    except RuntimeError as error:
        notes[EAGER] = str(error).splitlines()[0]
    return times, notes


def target_rows(timings: list[Row]) -> list[Row]:
    """What the GPU must reach; what was not timed is not met."""
    found = {(row["shape"]["tokens"], row["shape"]["pca_rank"]): row["ours_us"] for row in timings}
    rows = []
    for name, case, bound in TARGETS:
        microseconds = found.get((case.tokens, case.pca_rank))
        rows.append(target_row(name, None if microseconds is None else microseconds / 1e3, "<=", bound, "ms"))
    return rows


def _time(calls: list[Callable[[], object]], device: str) -> Timing:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that max_iter was reached is in the row
        return time_cuda(calls, repeats=10, warmup=1) if device == "cuda" else time_host(calls)
