#!/usr/bin/env python
"""Memory and time of va-export beside the usual way: load the checkpoint in transformers, call torch.onnx.export.

    .venv/bin/python scripts/benchmark_export.py HUB_ID --layers 2 4

HUB_ID is a published model whose sizes are known here (`va_export.models.published_config`). Both ways start from one
checkpoint of its width with random weights, written once for each number of decoder layers (vision tower cut to two),
and write the decoder in float16 to one ONNX file with external data. Each runs in a process of its own; memory is the
kernel's count of its peak. The other way needs some 10 GB for two layers.

    .venv/bin/python scripts/benchmark_export.py HUB_ID --layers 4 --rate 5 --baseline DIR

How fast weights go from a checkpoint to ONNX data, all components, the SHA-256 of both included: beside a plain copy of
the checkpoint with its SHA-256 (one read, one write, one digest in a thread of its own), and beside this package as it
lies in DIR (an earlier commit). Graphs are not traced. The ways take turns; medians of so many rounds. Files come from
the page cache and end on the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import operator
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from va_export.evidence.device import current_commit
from va_export.evidence.processes import watch
from va_export.models.parameters import load_model

REPOSITORY = Path(__file__).parents[1]
# Ours may take at most this part of the other way's memory.
BOUND = 1 / 3
# Runs this script over the package in another folder: an editable installation's finder comes before every path.
_OVER = (
    "import runpy, sys; package, *sys.argv = sys.argv[1:];"
    " sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in type(finder).__module__];"
    " sys.path.insert(0, package); import va_export; assert va_export.__file__.startswith(f'{package}/');"
    " runpy.run_path(sys.argv[0], run_name='__main__')"
)


def main() -> int:
    """Entry point; 0 if all exports ended well and ours kept to the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="hub id of a published model")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--work", type=Path, default=Path(), help="folder on the disk to use")
    parser.add_argument("--evidence", type=Path, default=Path("benchmark-export.json"), help="the JSON to write")
    parser.add_argument("--rate", type=int, metavar="ROUNDS", help="measure the rate of weights, so often")
    parser.add_argument("--baseline", type=Path, help="with --rate: a folder with another state of this package")
    parser.add_argument("--role", choices=("checkpoint", "peer", "weights", "copy"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        if arguments.role == "checkpoint":
            write_checkpoint(arguments.work, arguments.model, arguments.layers[0])
        else:
            {"peer": peer_export, "weights": write_weights, "copy": copy_checkpoint}[arguments.role](arguments.work)
        return 0
    place = arguments.work.absolute() / f"benchmark-export-{os.getpid()}"
    place.mkdir(parents=True)
    rows = []
    try:
        for layers in arguments.layers:
            if arguments.rate:
                rows.append(compare_rates(place, arguments.model, layers, arguments.rate, arguments.baseline))
                print(json.dumps(rows[-1]), flush=True)
            else:
                rows.append(compare(place, arguments.model, layers))
                print(row_text(rows[-1]), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    document = {
        "commit": current_commit(REPOSITORY),
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "model": f"{arguments.model}'s width, 2 vision layers, random weights, float16",
        "rows": rows,
    }
    arguments.evidence.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(arguments.evidence)
    return 0 if all(row.get("passed", True) for row in rows) else 1


def compare(place: Path, model: str, layers: int) -> dict[str, Any]:
    """One line of the table."""
    me = [sys.executable, __file__, model, "--layers", str(layers), "--work"]
    checkpoint = place / f"checkpoint-{layers}"
    made = watch([*me, str(checkpoint), "--role", "checkpoint"])
    assert made.code == 0, "the checkpoint could not be written"
    options = ["--fp16", "--onnx-only", "--no-parity", "--components", "decoder", "--model", str(checkpoint)]
    ours = watch(
        [sys.executable, "-c", "from va_export.cli.export import main; main()", *options, "-o", str(place / "ours")]
    )
    peer = watch([*me, str(checkpoint), "--role", "peer"])
    shutil.rmtree(place)
    place.mkdir()
    ratio = ours.peak_rss / peer.peak_rss
    return {
        "layers": layers,
        "ours": ours.to_json(),
        "peer": peer.to_json(),
        "memory_ratio": round(ratio, 3),
        "bound": round(BOUND, 3),
        # A peer that was killed for its memory had reached at least what is counted, so the ratio holds all the more.
        "passed": ours.code == 0 and peer.code in (0, -9) and ratio <= BOUND,
    }


def compare_rates(place: Path, model: str, layers: int, rounds: int, baseline: Path | None) -> dict[str, Any]:
    """One line of the table of rates: GB/s of each way in each round, and ours over the others, medians of the
    rounds' ratios."""
    checkpoint = place / f"checkpoint-{layers}"
    write_checkpoint(checkpoint, model, layers)
    here = str(REPOSITORY)
    ways = {"ours": ("weights", here), "copy": ("copy", here)}
    if baseline is not None:
        ways["baseline"] = ("weights", str(baseline.absolute()))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    loads = []
    for number in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        for way in list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]:
            role, path = ways[way]
            done = subprocess.run(
                [sys.executable, "-c", _OVER, path, __file__, model, "--role", role, "--work", str(checkpoint)],
                check=True,
                capture_output=True,
            )
            rates[way].append(round(float(done.stdout) / 1e9, 3))
    others = {way: values for way, values in rates.items() if way != "ours"}
    return {
        "layers": layers,
        "bytes": sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
        "baseline_commit": None if baseline is None else current_commit(baseline),
        "gb_per_s": rates,
        "load_before_each_round": loads,
        "ours_over": {
            way: round(statistics.median(map(operator.truediv, rates["ours"], values)), 3)
            for way, values in others.items()
        },
    }


def write_weights(directory: Path) -> None:
    """Stream all weights into one data file, the checkpoint's files being hashed meanwhile; prints bytes a second."""
    from va_export.bundle.journal import Journal
    from va_export.checkpoint.files import Checkpoint
    from va_export.checkpoint.hashes import hashing
    from va_export.graph.stream_weights import stream_weights
    from va_export.graph.weight_layout import WeightSlot, data_bytes
    from va_export.graph.write_onnx import reserve
    from va_export.models import family_for
    from va_export.progress import StageDisplay

    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    weight_map = family.weight_map(family.spec_from_checkpoint(checkpoint))
    slots: list[WeightSlot] = []
    for name, source in weight_map.items():
        turned = len(source.shape) == 2 and source.component != "embedding"  # as the pass over graphs decides
        offset = -(-data_bytes(slots) // 4096) * 4096
        shape = source.shape[::-1] if turned else source.shape
        slots.append(WeightSlot(name, "FLOAT16", shape, turned, offset, 2 * math.prod(shape)))
    data = directory / "data"
    reserve(data, data_bytes(slots))
    start = time.perf_counter()
    with hashing(checkpoint, Journal(directory / "journal")) as hashes, StageDisplay().stage("weights") as stage:
        streamed = stream_weights(data, slots, weight_map, checkpoint)
        hashes.wait(stage)
    seconds = time.perf_counter() - start
    assert streamed.sha256
    data.unlink()
    (directory / "journal").unlink()
    print(data_bytes(slots) / seconds)


def copy_checkpoint(directory: Path) -> None:
    """Copy a checkpoint's files, each with its SHA-256; prints bytes a second."""
    total, start, copy = 0, time.perf_counter(), directory / "copy"
    with ThreadPoolExecutor(1) as hasher:
        for path in sorted(directory.glob("*.safetensors")):
            digest = hashlib.sha256()
            hashed: Future[Any] = hasher.submit(bytes)
            with path.open("rb", buffering=0) as source, copy.open("wb", buffering=0) as target:
                while content := source.read(8 << 20):
                    target.write(content)
                    hashed.result()
                    hashed = hasher.submit(digest.update, content)
                    total += len(content)
                os.fsync(target.fileno())
                hashed.result()
    seconds = time.perf_counter() - start
    copy.unlink()
    print(total / seconds)


def row_text(row: dict[str, Any]) -> str:
    """One line of the table, for people."""
    parts = [
        f"{name}: {row[name]['peak_rss_bytes'] / 1e9:5.2f} GB {row[name]['seconds']:6.1f} s (exit {row[name]['code']})"
        for name in ("ours", "peer")
    ]
    return f"{row['layers']:2} layers   {'   '.join(parts)}   memory ratio {row['memory_ratio']:.2f}"


def cut_config(model: str, layers: int) -> dict[str, Any]:
    """The published configuration with fewer layers."""
    from va_export.models import published_config

    config = json.loads(json.dumps(published_config(model)))
    config["llm_config"]["num_hidden_layers"] = layers
    config["vision_config"]["num_hidden_layers"] = 2
    return dict(config)


def write_checkpoint(directory: Path, model: str, layers: int) -> None:
    """A checkpoint in the original layout, a shard for every gigabyte or so."""
    import torch
    from safetensors.torch import save_file

    from va_export.checkpoint.random_weights import RandomCheckpoint
    from va_export.models import family_for

    config = cut_config(model, layers)
    family = family_for(config)
    weights = RandomCheckpoint(directory, config, family.weight_map(family.spec_from_config(config)), 0)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards: list[dict[str, torch.Tensor]] = [{}]
    index = {}
    for name in weights.names():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > 1e9:
            save_file(shards[-1], directory / f"model-{len(shards):05}.safetensors")
            shards[-1] = {}
            shards.append({})
        shards[-1][name] = weights.tensor(name)
        index[name] = f"model-{len(shards):05}.safetensors"
    save_file(shards[-1], directory / f"model-{len(shards):05}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def peer_export(directory: Path) -> None:
    """The usual way: all weights in memory, then one call of torch.onnx.export.

    The checkpoint's own layout needs remote code in transformers, so the mapped model is loaded through this package's
    key map, in float16 at once: the kindest form of the usual way. The decoder is exported in one forward pass over
    embeddings, with transformers' own attention, no cache.
    """
    import torch

    from va_export.checkpoint.files import Checkpoint
    from va_export.models import family_for

    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    model: Any = load_model(family, spec, checkpoint, torch.float16, "sdpa").eval()

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
            hidden = self.model.model.language_model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
            return self.model.lm_head(hidden[:, -1:])

    example = torch.zeros(1, 8, spec.text.hidden_size, dtype=torch.float16)
    (directory / "peer").mkdir()
    with torch.no_grad():
        torch.onnx.export(
            Decoder().eval(),
            (example,),
            directory / "peer" / "decoder.onnx",
            dynamo=True,
            external_data=True,
            verbose=False,
        )


if __name__ == "__main__":
    raise SystemExit(main())
