"""`va-run`: ask a bundle about a video."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from va_export.cli.console import run, set_up_logging, show_version, user_errors
from va_export.errors import VaExportError


def run_command(
    bundle: Annotated[Path, Argument(help="The bundle's directory.")],
    video: Annotated[Path, Option(help="The clip.")],
    prompt: Annotated[str, Option(help="The question.")],
    frames: Annotated[int | None, Option(help="Frames to take. [default: the bundle's]")] = None,
    sampling: Annotated[
        str | None,
        Option(
            help="Which frames: segment-midpoint, uniform-index, uniform-time, or fps=N, up to --frames or as many as"
            " the bundle takes. [default: the bundle's rule]"
        ),
    ] = None,
    allow_truncated: Annotated[
        bool, Option("--allow-truncated", help="Take what is there of a clip that is cut short.")
    ] = False,
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
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "warning",
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Print the answer as it is generated."""
    with user_errors():
        set_up_logging(log_level)
        from va_export.runtime.backends.decoder_parts import parse_devices
        from va_export.runtime.bundle import Bundle
        from va_export.runtime.video import check_sampling, is_by_rate, read_frames

        if sampling is not None:
            check_sampling(sampling, "--sampling")
        if frames is not None and frames < 1:
            raise VaExportError(f"--frames must be at least 1, not {frames}", where="--frames", fix="raise it")
        with Bundle.open(bundle, backend, devices=parse_devices(devices), score=score) as opened:
            rule = sampling or opened.processing.frame_sampling
            usual = opened.limits.max_frames if is_by_rate(rule) else opened.default_frames
            clip = read_frames(video, frames or usual, rule, allow_truncated=allow_truncated)
            for note in clip.reading.notes:
                print(f"note: {note}", file=sys.stderr)
            input_ids = opened.prompt(prompt, len(clip.indices))
            assert opened.tokenizer is not None  # prompt() would have raised
            text = opened.tokenizer.stream()
            stops = set(opened.processing.stop_token_ids)

            def show(token: int) -> None:
                if token not in stops:
                    print(text.push(token), end="", flush=True)

            result = opened.generate(
                pixel_values=opened.processing.pixel_values(clip.pixels),
                input_ids=input_ids,
                max_new_tokens=max_new_tokens,
                anchors=not no_anchors,
                alpha_k=alpha_k,
                alpha_v=alpha_v,
                on_token=show,
            )
            print(text.finish())
        if timings:
            spent = {stage: round(value, 2) for stage, value in result.timings.items()}
            print(json.dumps(spent | {"video": clip.reading.as_json()}), file=sys.stderr)


def main() -> None:
    """Entry point."""
    run(run_command)
