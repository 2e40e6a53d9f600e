#!/usr/bin/env python
"""SubspaceScore on a machine with an NVIDIA GPU: right, and how fast; writes engines/evidence/<gpu>-score.json.

    .venv/bin/python scripts/gpu_score.py
    python scripts/gpu_score.py --device cpu --tiny --output /tmp/trial    # the script itself, on the reference

Needed: PyTorch with CUDA, and the plugin library, installed or named by VA_EXPORT_PLUGIN_LIBRARY. Timings stand beside
the paper's form, a dense float64 solve an iteration, in the same run. What fails is recorded, not hidden: the exit code
is 1 then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not

from va_export.errors import VaExportError  # noqa: E402
from va_export.evidence.device import current_commit, describe_cpu, describe_device, measure_ceilings  # noqa: E402
from va_export.evidence.document import begin_evidence, failures, write_evidence  # noqa: E402
from va_export.evidence.score_rows import check_rows, target_rows, timing_rows  # noqa: E402


def gather(device: str, tiny: bool, output: Path) -> Path:
    """Check, time, write the file; its path."""
    described = describe_device() if device == "cuda" else describe_cpu()
    document = begin_evidence(described, current_commit(ROOT), measure_ceilings())
    for row in check_rows(device, tiny=tiny):
        print(f"{'passed' if row['passed'] else 'FAILED'} {row['name']} {row.get('message', '')}", flush=True)
        document["checks"].append(row)
    for row in timing_rows(device, tiny=tiny):
        print(f"{row['shape']}: {row['ours_us']} us, peers {row['peers_us']} {row['notes']}", flush=True)
        document["timings"].append(row)
    if device == "cuda" and not tiny:
        document["targets"] = target_rows(document["timings"])
        for row in document["targets"]:
            print(
                f"{'met' if row['passed'] else 'MISSED'} {row['name']}: {row['measured']} (at most {row['bound']} ms)"
            )
    path = write_evidence(document, output, "score")
    failed = failures(document)
    print(f"{path}: {len(failed)} failures")
    if failed or any(row["ours_us"] is None for row in document["timings"]):
        raise SystemExit(1)
    return path


def main() -> None:
    """The options, and everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the reference takes our place")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    arguments = parser.parse_args()
    try:
        gather(arguments.device, arguments.tiny, arguments.output)
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
