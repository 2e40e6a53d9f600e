"""Checkpoint → ONNX files, one component after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.progress import StageDisplay
    from va_export.recipe import ExportOptions
    from va_export.source import Source


def write_components(
    options: ExportOptions, source: Source, bundle: BundleWriter, display: StageDisplay
) -> dict[str, dict[str, Any]]:
    """Trace every component and write its ONNX files; returns the manifest's `components`."""
    from va_export.graph.native import write_native_form
    from va_export.graph.trace import trace_component
    from va_export.graph.write_onnx import check_onnx, write_onnx
    from va_export.passes import run_passes

    weight_map = source.family.weight_map(source.spec)
    entries: dict[str, dict[str, Any]] = {}
    for name in options.components:
        with display.stage(f"export {name}") as stage:
            model = run_passes(trace_component(name, source.family, source.spec, options.precision))
            path = bundle.path(f"onnx/{name}.onnx")
            n_weights = len(model.graph.initializers)
            done = iter(range(1, n_weights + 1))
            write_onnx(
                model,
                path,
                source.checkpoint,
                weight_map,
                lambda *_, d=done, n=n_weights, s=stage: s.advance(next(d, n), n),
            )
            entries[name] = {"onnx": f"onnx/{name}.onnx"}
            if name == "decoder":
                write_native_form(path, bundle.path("onnx/decoder_native.onnx"))
                entries[name]["onnx_native"] = "onnx/decoder_native.onnx"
            for relative in entries[name].values():
                check_onnx(bundle.path(relative))
            stage.say(f"{sum(1 for _ in model.graph)} nodes, {n_weights} tensors")
    return entries


def write_score(options: ExportOptions, source: Source, bundle: BundleWriter, display: StageDisplay) -> dict[str, Any]:
    """Write SubspaceScore's graph with the recipe's settings, which has no weights; returns its manifest entry."""
    import onnx

    from va_export.graph.score import score_model
    from va_export.graph.write_onnx import check_onnx

    with display.stage("export score") as stage:
        relative = "onnx/score.onnx"
        tuned = options.recipe.limits.opt_frames * source.spec.vision.tokens_per_frame
        model = score_model(options.recipe.score, source.spec.text.hidden_size, tuned)
        onnx.save(model, bundle.path(relative))
        check_onnx(bundle.path(relative))
        stage.say(f"1 node, and {len(model.functions[0].node)} in its body")
    return {"onnx": relative}
