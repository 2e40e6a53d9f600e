"""`va-check`: repeat a bundle's parity and latency on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from va_export.cli.console import EXIT_FAILED_PARITY, run, set_up_logging, show_version, user_errors


def check_command(
    bundle: Annotated[Path, Argument(help="The bundle's directory.")],
    backend: Annotated[str, Option(help="onnxruntime, tensorrt-rtx, tensorrt or torch.")] = "onnxruntime",
    devices: Annotated[str, Option(help="GPUs for the decoder's shards, as 0,1. [default: one GPU, or the CPU]")] = "",
    atol: Annotated[float | None, Option(help="Absolute tolerance, instead of the precision's.")] = None,
    rtol: Annotated[float | None, Option(help="Relative tolerance, instead of the precision's.")] = None,
    latency_iterations: Annotated[int, Option(help="Timed repeats; 0: no latency.")] = 10,
    output: Annotated[
        Path | None, Option("-o", "--output", help="Directory for parity.json and latency.json of this run.")
    ] = None,
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "warning",
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compare a bundle with the reference that it carries, and time it. Hashes of all its files are verified first.

    The exit code is 0 when everything is within tolerance, 1 when it is not, 2 when the bundle or the backend cannot
    be used.
    """
    with user_errors():
        set_up_logging(log_level)
        from va_export.progress import StageDisplay
        from va_export.proof.run import check_bundle
        from va_export.runtime.backends.decoder_parts import parse_devices

        proof = check_bundle(
            bundle,
            backend,
            StageDisplay(),
            atol=atol,
            rtol=rtol,
            iterations=latency_iterations,
            output=output,
            devices=parse_devices(devices),
        )
        print(json.dumps({"bundle": str(bundle), "backend": backend, "passed": proof.parity.passed}))
    if not proof.parity.passed:
        raise typer.Exit(EXIT_FAILED_PARITY)


def main() -> None:
    """Entry point."""
    run(check_command)
