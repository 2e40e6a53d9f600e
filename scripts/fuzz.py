#!/usr/bin/env python3
"""Change every file that the product reads in ways that nobody would, and see that it takes it or says what is wrong.

    .venv/bin/python scripts/fuzz.py --cases 1000 [--evidence engines/evidence/fuzz/log.json]     a whole run
    .venv/bin/python scripts/fuzz.py --seconds 60 [--kind video ...] [--seed 7]

A case that ends in another way (an exception that is no VaExportError, a signal, no end, more memory than 2 GB,
anything on standard output) is a find: its file and what was seen are kept under --finds, and the exit code is 1. The
kinds of files are a table in tests/fuzz/fuzz_kinds.py. One process, one core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Before NumPy's and ONNX Runtime's first import: no thread may be alive where cases are forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OPENCV_FFMPEG_LOGLEVEL": "-8"}
sys.path[:0] = [str(ROOT / "tests" / "fuzz"), str(ROOT / "tests")]

import argparse  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import importlib.metadata  # noqa: E402
import tempfile  # noqa: E402
from datetime import UTC, datetime  # noqa: E402

from fork_case import check_no_threads  # noqa: E402
from fuzz_kinds import IMPORTED, KINDS  # noqa: E402
from fuzz_run import Fuzzer, FuzzLog, FuzzRow  # noqa: E402

from va_export.documents import encode  # noqa: E402
from va_export.evidence.device import current_commit  # noqa: E402

LIBRARIES = ("av", "msgspec", "numpy", "onnx", "onnxruntime", "safetensors", "tokenizers", "torch")


def main() -> int:
    """0 where nothing was found."""
    arguments = parse()
    kinds = [KINDS[name] for name in arguments.kind or KINDS]
    for name in IMPORTED:
        importlib.import_module(name)
    check_no_threads()
    gc.collect()
    gc.freeze()  # children that collect garbage would copy every page of it
    rows: list[FuzzRow] = []
    with tempfile.TemporaryDirectory(prefix="va-fuzz-") as work:
        fuzzer = Fuzzer(Path(work), arguments.finds, arguments.bundle)
        for kind in kinds:
            seconds = None if arguments.seconds is None else arguments.seconds / len(kinds)
            rows.append(fuzzer.run(kind, arguments.seed, arguments.cases, seconds))
            print(line(rows[-1]), flush=True)
    print(line(FuzzRow("all", *(sum(getattr(row, name) for row in rows) for name in FuzzRow.__struct_fields__[1:]))))
    if arguments.evidence is not None:
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        commit, today = current_commit(ROOT), datetime.now(UTC).date()
        arguments.evidence.parent.mkdir(parents=True, exist_ok=True)
        arguments.evidence.write_bytes(encode(FuzzLog(commit, today, arguments.seed, versions, tuple(rows))))
    return int(any(row.finds for row in rows))


def line(row: FuzzRow) -> str:
    """A row for people."""
    rate = 1000 * row.seconds / max(1, row.cases)
    return (
        f"{row.kind:<24}{row.cases:>7} cases {row.accepted:>7} accepted {row.refused:>7} refused {row.finds:>5} finds"
        f" {row.seconds:>8.1f} s {rate:>6.0f} ms a case"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--cases", type=int, help="of each kind")
    length.add_argument("--seconds", type=float, help="in all, shared among the kinds")
    parser.add_argument("--kind", nargs="+", choices=sorted(KINDS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="a bundle of internvl2-tiny, instead of exporting one")
    parser.add_argument("--finds", type=Path, default=Path("fuzz-finds"), help="where what fails is kept")
    parser.add_argument("--evidence", type=Path, help="the log to write")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
