#!/usr/bin/env python
"""What VideoAnchor costs a question about a video, on one GPU; writes engines/evidence/<gpu>-end-to-end.json.

    .venv/bin/python scripts/gpu_end_to_end.py

A recipe's model (internvl2-8b) at its published size, random weights made on the GPU (time and memory depend on shapes,
not on values), float16, frames of a real clip, batch 1. The same question is answered without anchors by PyTorch's best
attention, and with anchors by our kernel, the paper's own way, a dense bias mask and FlexAttention; all in one process,
medians of alternating repeats. Ours takes the tensor-core attention and the score's kernels, unless the environment
names others. A way that runs out of memory is recorded so. Without a GPU: --device cpu --tiny --output FOLDER tries the
script, and its figures are no evidence.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import asdict
from PIL import Image

import va_export.anchor.hugging_face  # noqa: F401  registers both of our attentions
from va_export.anchor import subspace_score
from va_export.errors import VaExportError
from va_export.evidence.attention_forms import AttentionForm, peer_forms
from va_export.evidence.device import current_commit, describe_cpu, describe_device, measure_ceilings
from va_export.evidence.document import (
    Document,
    Row,
    begin_evidence,
    check_row,
    failures,
    target_row,
    write_evidence,
)
from va_export.evidence.score_cases import textbook_seconds
from va_export.evidence.video_question import STAGES, Question, Run, Scorer, ask, random_model, use_form
from va_export.export.recipe import ExportOptions, Recipe, resolve_model
from va_export.export.source import Model, open_model
from va_export.runtime.video import read_frames, sample_clip

ROOT = Path(__file__).resolve().parent.parent
# The kernels that are asked for by name until a GPU has shown them right; the environment can choose others.
ATTENTION_VARIABLE, SCORE_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL", "VA_EXPORT_SCORE_KERNEL"
os.environ.setdefault(ATTENTION_VARIABLE, "tensor_core")
os.environ.setdefault(SCORE_VARIABLE, "cuda")
TEXT_TOKENS = 64  # about what a prompt says beside eight frames
# Two float16 orders of the same sums: a logit is a product over hidden_size after num_layers residual steps, each
# rounded to 2^-11. Roundings add like a random walk: 2^-11 * sqrt(layers * 12 roundings a layer), twice. In float32,
# where the sums themselves round, four times as many: 2^-24 * 4 = 2^-11 * 2^-11.
LOGIT_TOLERANCE_A_LAYER = 2.0**-11 * math.sqrt(12) * 2
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def question(model: Model, n_frames: int, new_tokens: int, device: torch.device, dtype: torch.dtype) -> Question:
    """Frames of the sample clip and a prompt of random text around their places."""
    vocab_size, size = model.spec.text.vocab_size, frame_size(model)
    video = read_frames(sample_clip(), n_frames)
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((size, size))) for frame in video.pixels])
    pixels = (resized.astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    visual = model.visual_tokens(n_frames)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocab_size, TEXT_TOKENS + visual)
    is_visual = np.zeros(len(ids), dtype=bool)
    is_visual[TEXT_TOKENS // 2 : TEXT_TOKENS // 2 + visual] = True
    return Question(
        pixel_values=torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device, dtype),
        input_ids=torch.from_numpy(ids[None]).to(device),
        is_visual=torch.from_numpy(is_visual[None]).to(device),
        forced_tokens=tuple(int(token) for token in generator.integers(0, vocab_size, new_tokens)),
    )


def frame_size(model: Model) -> int:
    """Width and height of what the vision component takes, (frames, 3, S, S)."""
    vision = next(part for part in model.family.components(model.spec, "fp16", ()) if part.role == "vision")
    (pixels,) = vision.inputs
    return int(pixels.shape[-1])


def scorers(recipe: Recipe) -> dict[str, Scorer]:
    """Ours, and ours with the time of the paper's solver in its place (the same score, so that logits compare)."""
    settings = recipe.score
    textbook: dict[int, float] = {}

    def ours(visual: torch.Tensor) -> tuple[torch.Tensor, None]:
        return subspace_score(visual.float(), **asdict(settings)), None

    def official(visual: torch.Tensor) -> tuple[torch.Tensor, float]:
        details = subspace_score(visual.float(), **asdict(settings), return_details=True)
        count = visual.shape[0]
        if count not in textbook:
            textbook[count] = textbook_seconds(visual.float(), settings, max(1, details.iterations))
        return details.sharing_score, textbook[count]

    return {"ours": ours, "official": official}


def our_form(device: torch.device) -> AttentionForm:
    """Our kernel on a GPU; on a CPU, where it does not run, our eager attention in its place."""
    name = "anchored_cuda" if device.type == "cuda" else "anchored"
    said = name if name == "anchored_cuda" else "anchored (eager: anchored_cuda needs a GPU)"
    return AttentionForm(said, name, anchored=True)


def measure(
    model: Any, forms: list[AttentionForm], asked: Question, recipe: Recipe, repeats: int
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Repeated runs of every form, taken in turn after one that warms up; and why some forms have none."""
    score = scorers(recipe)
    runs: dict[str, list[Run]] = {form.name: [] for form in forms}
    trouble: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for form in forms:
            if form.name in trouble:
                continue
            use_form(model, form)
            scorer = score["official" if form.name.startswith("official") else "ours"]
            try:
                run = ask(model, form, asked, scorer, recipe.gains)
            except (RuntimeError, NotImplementedError) as error:  # out of memory is one of PyTorch's RuntimeErrors
                trouble[form.name] = str(error).strip().splitlines()[0]
                runs[form.name] = []
            else:
                if repeat:
                    runs[form.name].append(run)
                del run
            if asked.input_ids.device.type == "cuda":
                torch.cuda.empty_cache()
    return runs, trouble


def median_us(runs: list[Run], stage: str) -> float:
    """Median microseconds of one stage."""
    return 1e6 * statistics.median(run.seconds[stage] for run in runs)


def timing_rows(
    shape: Row, dtype: str, ours: str, runs: Mapping[str, list[Run]], trouble: Mapping[str, str]
) -> list[Row]:
    """One row a stage; the peers beside ours, and after the last stage the peak memory as a row of its own."""
    rows = []
    for stage in STAGES:
        peers = {
            name: median_us(of, stage) if of and stage in of[0].seconds else None
            for name, of in runs.items()
            if name != ours and not (stage == "score" and name.endswith("_plain"))
        }
        notes = {name: trouble.get(name, "not measured") for name, median in peers.items() if median is None}
        if stage in ("score", "total") and peers.get("official_eager_bias") is not None:
            notes["official_eager_bias"] = "its score is extrapolated from a few iterations, its clustering left out"
        row = {"op": f"video_question_{stage}", "shape": shape, "dtype": dtype, "peers_us": peers, "notes": notes}
        row["variant"] = f"attention {os.environ[ATTENTION_VARIABLE]}, score {os.environ[SCORE_VARIABLE]}"
        mine = runs[ours]
        if mine and stage in mine[0].seconds:
            samples = [1e6 * run.seconds[stage] for run in mine]
            row |= {"ours_us": statistics.median(samples), "ours_range_us": [min(samples), max(samples)]}
            row["repeats"] = len(mine)
        else:
            row |= {"ours_us": None, "ours_range_us": None}
            notes["ours"] = trouble.get(ours, "not measured")
        peak = {name: of[0].peak_bytes for name, of in runs.items() if of and of[0].peak_bytes is not None}
        if stage == "total" and peak:
            row |= {"ours_peak_bytes": peak.pop(ours, None), "peers_peak_bytes": peak}
        rows.append(row)
    return rows


def check_rows(
    shape: Row, dtype: str, layers: int, ours: str, runs: Mapping[str, list[Run]], trouble: Mapping[str, str]
) -> list[Row]:
    """Logits of every anchored form against ours; scores against each other are equal by construction."""
    tolerance = LOGIT_TOLERANCE_A_LAYER * math.sqrt(layers) * (2.0**-11 if dtype == "float32" else 1.0)
    rows = []
    if not runs[ours]:
        return [check_row(f"{ours} answers {shape['frames']} frames", False, shape=shape, message=trouble[ours])]
    expected = runs[ours][0].logits
    finite = bool(torch.isfinite(expected).all())
    rows.append(check_row(f"logits are finite at {shape['frames']} frames", finite, shape=shape, dtype=dtype))
    for name, of in runs.items():
        if name == ours or not of:
            continue
        error = float((of[0].logits - expected).norm() / expected.norm())
        if name.endswith("_plain"):  # forms that all ignored the gains would agree, too
            changed = error > 2 * tolerance
            rows.append(
                check_row(f"anchors change the logits of {name} at {shape['frames']} frames", changed, shape=shape)
            )
            continue
        # NaN is no number that a file may hold, and no agreement
        known = math.isfinite(error)
        rows.append(
            check_row(
                f"logits of {name} at {shape['frames']} frames",
                known and error <= tolerance,
                shape=shape,
                dtype=dtype,
                max_rel_err=error if known else None,
                tolerance=tolerance if known else None,
                message=None if known else "not finite",
            )
        )
    return rows


def target_rows(frames: int, ours: str, runs: Mapping[str, list[Run]]) -> list[Row]:
    """What this is meant to reach, for one number of frames."""
    plain = [of for name, of in runs.items() if name.endswith("_plain") and of]
    mine, official = runs[ours], runs["official_eager_bias"]
    rows = []
    overhead = share = faster = None
    if mine and plain:
        best = min(sum(median_us(of, stage) for stage in ("prefill", "decode_per_token")) for of in plain)
        overhead = sum(median_us(mine, stage) for stage in ("prefill", "decode_per_token")) / best - 1
    if mine:
        share = median_us(mine, "score") / median_us(mine, "total")
    if mine and official:
        faster = median_us(official, "total") / median_us(mine, "total")
    rows.append(target_row(f"anchors' cost in prefill and decode, {frames} frames", overhead, "<=", 0.03, "of plain"))
    if frames == 8:
        rows.append(target_row("the score's share of the whole, 8 frames", share, "<=", 0.03, "of the total"))
        rows.append(target_row("against the official way, 8 frames", faster, ">=", 5.0, "times"))
    return rows


def gather(arguments: argparse.Namespace, device: torch.device, document: Document) -> None:
    """Fill the document."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    recipe = resolve_model("internvl2-tiny" if arguments.tiny else arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        sized = open_model(ExportOptions(recipe, Path(scratch) / "bundle"), Path(scratch))
    model = random_model(sized.family, sized.spec, device, dtype)
    ours = our_form(device)
    forms = [*peer_forms(device), ours]
    for frames in arguments.frames:
        asked = question(sized, frames, arguments.new_tokens, device, dtype)
        runs, trouble = measure(model, forms, asked, recipe, arguments.repeats)
        shape = {
            "model": recipe.name,
            "frames": frames,
            "visual_tokens": sized.visual_tokens(frames),
            "prompt": int(asked.input_ids.shape[1]),
            "new_tokens": arguments.new_tokens,
        }
        document["timings"] += timing_rows(shape, name, ours.name, runs, trouble)
        document["checks"] += check_rows(shape, name, sized.spec.text.num_layers, ours.name, runs, trouble)
        document["targets"] += target_rows(frames, ours.name, runs)
        print(f"{frames} frames: " + ", ".join(f"{n} {_seconds(of)}" for n, of in runs.items()), flush=True)


def _seconds(runs: list[Run]) -> str:
    return f"{median_us(runs, 'total') / 1e6:.3f} s" if runs else "did not run"


def main() -> None:
    """Gather everything and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="internvl2-8b")
    parser.add_argument("--frames", type=int, nargs="+")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the toy model, few frames: to try the script")
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    arguments = parser.parse_args()
    arguments.frames = arguments.frames or ([2, 4] if arguments.tiny else [8, 16, 32, 64])
    try:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise VaExportError(
                "PyTorch sees no NVIDIA GPU",
                where=f"torch {torch.__version__}",
                fix="run this on a machine with a GPU and a CUDA build of PyTorch, or try it with --device cpu --tiny",
            )
        on_gpu = arguments.device == "cuda"
        device = describe_device() if on_gpu else describe_cpu()
        document = begin_evidence(device, current_commit(ROOT), measure_ceilings())
        gather(arguments, torch.device(arguments.device), document)
        path = write_evidence(document, arguments.output, "end-to-end")
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None
    failed = failures(document)
    print(f"{path}: {len(failed)} of {len(document['checks']) + len(document['targets'])} failed {failed or ''}")
    # The toy on a CPU answers whether everything runs and agrees; how fast it is decides nothing.
    judged = failed if on_gpu else [row["name"] for row in document["checks"] if not row["passed"]]
    if judged:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
