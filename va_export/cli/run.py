"""`va-run`: ask a bundle about a video."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from va_export.cli.console import AsJson, LogLevel, Result, Version, run, set_up_logging


def run_command(
    bundle: Annotated[Path, Argument(help="The bundle's directory.")],
    video: Annotated[Path, Option(help="The clip.")],
    prompt: Annotated[str, Option(help="The question.")],
    frames: Annotated[int | None, Option(help="Frames to take. [default: the bundle's]")] = None,
    no_anchors: Annotated[bool, Option("--no-anchors", help="Leave VideoAnchor out.")] = False,
    alpha_k: Annotated[float | None, Option(help="Gain on keys, instead of the bundle's.")] = None,
    alpha_v: Annotated[float | None, Option(help="Gain on values, instead of the bundle's.")] = None,
    max_new_tokens: Annotated[int, Option(help="Length of the answer at the most.")] = 128,
    backend: Annotated[str, Option(help="onnxruntime, tensorrt-rtx, tensorrt or torch.")] = "onnxruntime",
    devices: Annotated[str, Option(help="GPUs for the decoder's shards, as 0,1. [default: one GPU, or the CPU]")] = "",
    score: Annotated[
        str | None, Option(help="host, or graph: the bundle's own. [default: graph on TensorRT, else host]")
    ] = None,
    timings: Annotated[bool, Option("--timings", help="Print milliseconds by stage to standard error.")] = False,
    as_json: AsJson = False,
    log_level: LogLevel = "warning",
    version: Version = False,
) -> Result:
    """Print the answer as it is generated."""
    set_up_logging(log_level)
    from va_export.runtime import values
    from va_export.runtime.backends.decoder_parts import parse_devices
    from va_export.runtime.bundle import Bundle
    from va_export.runtime.video import read_frames

    values.text("--prompt", prompt)
    if frames is not None:
        values.whole_number("--frames", frames, least=1)
    with Bundle.open(bundle, backend, devices=parse_devices(devices), score=score) as opened:
        n_frames = opened.default_frames if frames is None else frames
        input_ids = opened.prompt(prompt, n_frames)
        clip = read_frames(video, n_frames, opened.processing.frame_sampling)
        assert opened.tokenizer is not None  # prompt() would have raised
        text = opened.tokenizer.stream()
        stops = set(opened.processing.stop_token_ids)
        pieces = []

        def show(piece: str) -> None:
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)

        result = opened.generate(
            pixel_values=opened.processing.pixel_values(clip.pixels),
            input_ids=input_ids,
            max_new_tokens=max_new_tokens,
            anchors=not no_anchors,
            alpha_k=alpha_k,
            alpha_v=alpha_v,
            on_token=lambda token: None if token in stops else show(text.push(token)),
        )
        show(text.finish())
        if not as_json:
            print()
        milliseconds = {stage: round(value, 2) for stage, value in result.timings.items()}
        if timings:
            print(json.dumps(milliseconds), file=sys.stderr)
        return Result(
            {
                "bundle": str(bundle),
                "backend": backend,
                "device": opened.backend.device,
                "frames": n_frames,
                "answer": "".join(pieces),
                "tokens": result.tokens.tolist(),
                "timings_ms": milliseconds,
            }
        )


def main() -> None:
    """Entry point."""
    run(run_command)
