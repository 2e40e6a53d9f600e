"""`va-check`: repeat a bundle's parity and latency on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import to_builtins
from typer import Argument, Option

from va_export.cli.console import AsJson, LogLevel, Result, TrustPlugins, Version, run, set_up_logging
from va_export.cli.failures import EXIT_FAILED_PARITY


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
    trust_plugins: TrustPlugins = False,
    as_json: AsJson = False,
    log_level: LogLevel = "warning",
    version: Version = False,
) -> Result:
    """Compare a bundle with the reference that it carries, and time it. Hashes of all its files are verified
    first, and what will be executed of it is told, with what vouches for it (SECURITY.md).

    The exit code is 0 when everything is within tolerance, 1 when it is not, 2 when the bundle or the backend cannot
    be used.
    """
    set_up_logging(log_level)
    from va_export.progress import StageDisplay
    from va_export.proof.run import check_bundle
    from va_export.proof.verdict import verdict, what_ran
    from va_export.runtime.backends.decoder_parts import parse_devices

    display = StageDisplay()
    proof = check_bundle(
        bundle,
        backend,
        display,
        atol=atol,
        rtol=rtol,
        iterations=latency_iterations,
        output=output,
        devices=parse_devices(devices),
        trust_plugins=trust_plugins,
    )
    parity = proof.parity
    said, passed = verdict(parity), parity.passed
    if not as_json:
        print(f"{said}: {bundle}")
    answer = {"bundle": str(bundle), "backend": backend, "passed": passed, "verdict": said, "ran": what_ran(parity)}
    latency = {
        "anchored" if timed.anchors else "plain": timed.stages["end_to_end"].median_ms
        for timed in (proof.latency.runs if proof.latency else ())
    }
    return Result(
        {**answer, "not_run": to_builtins(parity.not_run), "seconds": display.seconds, "median_ms": latency},
        0 if passed else EXIT_FAILED_PARITY,
    )


def main() -> None:
    """Entry point."""
    run(check_command)
