#!/usr/bin/env python
"""Memory and time of va-export beside the usual way: load the checkpoint in transformers, call torch.onnx.export.

    .venv/bin/python scripts/benchmark_export.py HUB_ID --layers 2 4

HUB_ID is a published model whose sizes are known here (`va_export.models.published_config`). Both ways start from one
checkpoint of its width with random weights, written once for each number of decoder layers (vision tower cut to two),
and write the decoder in float16 to one ONNX file with external data. Each runs in a process of its own; memory is the
kernel's count of its peak. The other way needs some 10 GB for two layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from va_export.evidence.device import current_commit
from va_export.evidence.processes import watch
from va_export.models.parameters import load_model

REPOSITORY = Path(__file__).parents[1]
# Ours may take at most this part of the other way's memory.
BOUND = 1 / 3


def main() -> int:
    """Entry point; 0 if all exports ended well and ours kept to the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="hub id of a published model")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--work", type=Path, default=Path(), help="folder on the disk to use")
    parser.add_argument("--evidence", type=Path, default=Path("benchmark-export.json"), help="the JSON to write")
    parser.add_argument("--role", choices=("checkpoint", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        if arguments.role == "peer":
            peer_export(arguments.work)
        else:
            write_checkpoint(arguments.work, arguments.model, arguments.layers[0])
        return 0
    place = arguments.work.absolute() / f"benchmark-export-{os.getpid()}"
    place.mkdir(parents=True)
    rows = []
    try:
        for layers in arguments.layers:
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
    return 0 if all(row["passed"] for row in rows) else 1


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
