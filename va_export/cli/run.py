"""`va-run`: ask a bundle about a video."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from va_export.cli.console import AsJson, LogLevel, Result, TrustPlugins, Version, run, set_up_logging


def run_command(
    bundle: Annotated[Path, Argument(help="The bundle's directory.")],
    video: Annotated[Path, Option(help="The clip.")],
    prompt: Annotated[str, Option(help="The question.")],
    frames: Annotated[int | None, Option(help="Frames to take. [default: the bundle's]")] = None,
    sampling: Annotated[
        str | None,
        Option(
            help="Which frames: segment-midpoint, uniform-index, uniform-index-floor, uniform-time, or fps=N, up to"
            " --frames or as many as the bundle takes. [default: the bundle's rule]"
        ),
    ] = None,
    allow_truncated: Annotated[
        bool, Option("--allow-truncated", help="Take what is there of a clip that is cut short.")
    ] = False,
    no_anchors: Annotated[bool, Option("--no-anchors", help="Leave VideoAnchor out.")] = False,
    alpha_k: Annotated[float | None, Option(help="Gain on keys, instead of the bundle's.")] = None,
    alpha_v: Annotated[float | None, Option(help="Gain on values, instead of the bundle's.")] = None,
    max_new_tokens: Annotated[int, Option(help="Length of the answer at the most.")] = 128,
    temperature: Annotated[float, Option(help="Draw tokens, at this temperature. 0: the likeliest.")] = 0.0,
    top_k: Annotated[int, Option(help="Draw from so many of the likeliest tokens. 0: from all.")] = 0,
    top_p: Annotated[float, Option(help="Draw from the likeliest tokens that together are so likely.")] = 1.0,
    seed: Annotated[int | None, Option(help="Of the draw. [default: another every time]")] = None,
    backend: Annotated[str, Option(help="onnxruntime, tensorrt-rtx, tensorrt or torch.")] = "onnxruntime",
    devices: Annotated[str, Option(help="GPUs for the decoder's shards, as 0,1. [default: one GPU, or the CPU]")] = "",
    score: Annotated[
        str | None, Option(help="host, or graph: the bundle's own. [default: graph on TensorRT, else host]")
    ] = None,
    score_cache: Annotated[
        str, Option(help="Where scores are kept, or off. [default: scores/ in $VA_EXPORT_CACHE or ~/.cache]")
    ] = "",
    timings: Annotated[bool, Option("--timings", help="Print milliseconds by stage to standard error.")] = False,
    trust_plugins: TrustPlugins = False,
    as_json: AsJson = False,
    log_level: LogLevel = "warning",
    version: Version = False,
) -> Result:
    """Print the answer as it is generated."""
    set_up_logging(log_level)
    from va_export.cli.score_display import ScoreDisplay
    from va_export.runtime import values
    from va_export.runtime.anchoring import Anchoring
    from va_export.runtime.backends.decoder_parts import parse_devices
    from va_export.runtime.bundle import Bundle
    from va_export.runtime.clip import Clip
    from va_export.runtime.token_choice import Sampling
    from va_export.runtime.user_cache import resolve_cache
    from va_export.runtime.video import check_sampling

    values.text("--prompt", prompt)
    if frames is not None:
        values.whole_number("--frames", frames, least=1)
    if sampling is not None:
        check_sampling(sampling, "--sampling")
    chosen = Sampling(temperature, top_k, top_p, seed=seed)
    gpus = parse_devices(devices)
    settings: dict[str, Any] = {"devices": gpus, "score": score, "trust_plugins": trust_plugins}
    settings["score_cache"] = resolve_cache("--score-cache", score_cache, "scores")
    settings["clip_memory"] = 0  # one question: nobody would find what is kept of the clip
    with closing(ScoreDisplay()) as display, Bundle.open(bundle, backend, on_score=display, **settings) as opened:
        anchoring = Anchoring(not no_anchors, alpha_k, alpha_v)
        # Not by Bundle.watch, which sees the clip at once: a prompt that is too long is refused before that.
        clip = Clip.of_file(opened, video, anchoring, frames, sampling, allow_truncated)
        assert clip.file is not None
        reading = clip.file.reading
        for note in reading.notes:
            print(f"note: {note}", file=sys.stderr)
        answer = clip.ask(prompt, max_new_tokens, chosen)
        for piece in answer:
            if not as_json:
                print(piece, end="", flush=True)
        if not as_json:
            print()
        spent = clip.timings | answer.timings
        spent["total"] += sum(clip.timings.values())
        milliseconds = {stage: round(value, 2) for stage, value in spent.items()}
        if timings:
            print(json.dumps(milliseconds | {"video": reading.as_json()}), file=sys.stderr)
        return Result(
            {
                "bundle": str(bundle),
                "backend": backend,
                "device": opened.backend.device,
                "frames": len(clip.file.indices),
                "video": reading.as_json(),
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "seed": answer.sampling.seed if temperature else None,
                "tokens": answer.tokens,
                "timings_ms": milliseconds,
            }
        )


def main() -> None:
    """Entry point."""
    run(run_command)
