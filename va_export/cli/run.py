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
    trust_plugins: Annotated[
        bool, Option("--trust-plugins", help="Execute the bundle's own library and engines, whoever made them.")
    ] = False,
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
        from va_export.runtime.video import read_frames

        if frames is not None and frames < 1:
            raise VaExportError(f"--frames must be at least 1, not {frames}", where="--frames", fix="raise it")
        gpus = parse_devices(devices)
        with Bundle.open(bundle, backend, devices=gpus, score=score, trust_plugins=trust_plugins) as opened:
            n_frames = opened.default_frames if frames is None else frames
            input_ids = opened.prompt(prompt, n_frames)
            clip = read_frames(video, n_frames, opened.processing.frame_sampling)
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
            print(json.dumps({stage: round(value, 2) for stage, value in result.timings.items()}), file=sys.stderr)


def main() -> None:
    """Entry point."""
    run(run_command)
