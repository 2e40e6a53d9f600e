"""A bundle's engines on a GPU as rows of evidence: parity, latency, and the exact words of what refused."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from va_export.errors import VaExportError
from va_export.evidence.document import Row, check_row
from va_export.evidence.native_build import build_native, cuda_arch
from va_export.progress import StageDisplay
from va_export.proof.documents import LatencyRun
from va_export.proof.run import check_bundle
from va_export.tensorrt.api import available_flavors

ITERATIONS = 50


def use_wheels(source: Path, target: Path) -> list[str]:
    """Unpack wheels and make them importable in this process: TensorRT-RTX's libraries for a machine without a network.

    Args:
        source: a directory of `*.whl` files, or of their pieces `NAME.whl.0`, `NAME.whl.1`, …, joined in the order of
            their names.
        target: an empty directory.

    Returns:
        the wheels' names.

    Raises:
        VaExportError: there are none, or one is damaged.
    """
    pieces: dict[str, list[Path]] = {}
    for path in sorted(source.glob("*.whl*"), key=_piece_order):
        pieces.setdefault(path.name[: path.name.index(".whl") + 4], []).append(path)
    if not pieces:
        raise VaExportError("there are no wheels here, nor pieces of them", where=source, fix="give their directory")
    for name, parts in pieces.items():
        joined = target / name
        with joined.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        try:
            with zipfile.ZipFile(joined) as wheel:
                wheel.extractall(target)
        except zipfile.BadZipFile as error:
            raise VaExportError(
                f"{name} is no whole wheel: {error}", where=source, fix="copy it, or all of its pieces, again"
            ) from error
        joined.unlink()
    sys.path.insert(0, str(target))
    return sorted(pieces)


def _piece_order(path: Path) -> tuple[str, int]:
    name, _, piece = path.name.partition(".whl")
    return name, int(piece.lstrip(".")) if piece.lstrip(".").isdecimal() else -1


def bundle_rows(bundle: Path, label: str, iterations: int = ITERATIONS) -> Iterator[tuple[str, Row]]:
    """Parity and latency on every TensorRT that is installed, each row with its kind."""
    flavors = available_flavors()
    if not flavors:
        yield "checks", check_row(f"{label}: engines", False, message="no TensorRT is installed")
    for flavor in flavors:
        yield from checked_rows(bundle, flavor, f"{label} {flavor}", iterations)


def onnxruntime_rows(bundle: Path, label: str, iterations: int = ITERATIONS) -> Iterator[tuple[str, Row]]:
    """The same in ONNX Runtime, if it finds the GPU: what a bundle falls back to where no engine may run."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        name = f"{label} onnxruntime CUDA provider"
        yield "checks", check_row(name, False, message="onnxruntime-gpu is not installed, or finds no GPU")
        return
    yield from checked_rows(bundle, "onnxruntime", f"{label} onnxruntime CUDA provider", iterations)


def plugin_object_rows(repository: Path, folder: Path, compute_capability: str) -> Iterator[tuple[str, Row]]:
    """The plugin object called without TensorRT, for a GPU that no engine may run on."""
    from va_export.evidence.attention_parts import plugin_part

    try:
        build = build_native(repository, folder, cuda_arch(compute_capability))
    except VaExportError as error:
        yield "checks", check_row("plugin object: built", False, message=str(error))
        return
    yield from plugin_part(build.host, build.library)


def checked_rows(bundle: Path, backend: str, label: str, iterations: int) -> Iterator[tuple[str, Row]]:
    """Parity and latency of a bundle on one backend, or the words in which it refused."""
    try:
        proof = check_bundle(bundle, backend, StageDisplay(), iterations=iterations)
    except VaExportError as error:
        yield "checks", check_row(label, False, message=str(error))
        return
    for check in proof.parity.runs[0].checks:
        name = f"{label} {check.stage} anchors={check.anchors}: error over its bound"
        # parity.py bounds each number by itself; the worst of them, as a part of its bound, is what a row can hold.
        numbers = {"max_rel_err": check.tolerance_used, "tolerance": 1.0}
        yield "checks", check_row(name, check.passed, dtype=_DTYPES[proof.parity.precision], **numbers)
    for run in proof.latency.runs if proof.latency else ():
        for row in stage_rows(run, _DTYPES[proof.parity.precision]):
            yield "timings", row


_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def stage_rows(run: LatencyRun, dtype: str) -> list[Row]:
    """One run of latency.json as timing rows: each stage as the host waits for it, and by the GPU's own events."""
    shape = {key: getattr(run, key) for key in ("backend", "attention", "anchors", "new_tokens")}
    rows = []
    for variant, stages in (("host time", run.stages), ("gpu time", run.gpu_stages or {})):
        for stage, times in stages.items():
            row = {
                "op": f"bundle_{stage}",
                "shape": shape,
                "dtype": dtype,
                "variant": variant,
                "ours_us": 1e3 * times.median_ms,
                "ours_range_us": [1e3 * times.min_ms, 1e3 * times.max_ms],
                "peers_us": {},
                "repeats": times.iterations,
            }
            if run.peak_memory_bytes.device is not None:
                row["ours_peak_bytes"] = run.peak_memory_bytes.device
            rows.append(row)
    return rows
