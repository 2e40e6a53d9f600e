"""ONNX files → engines, for the TensorRT that is installed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import to_builtins

from va_export.bundle.decoder_shards import DECODER, is_decoder
from va_export.bundle.manifest import sha256
from va_export.errors import VaExportError
from va_export.export.recipe import SCORE
from va_export.native import plugin_contract, plugin_library
from va_export.runtime.backends.external_data import external_files
from va_export.tensorrt.api import Flavor, TensorRT, available_flavors, load_tensorrt
from va_export.tensorrt.build_process import build_in_process
from va_export.tensorrt.cache_key import cache_key, graph_sha256
from va_export.tensorrt.engine_cache import EngineCache, Obtained, build_only
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.profiles import dimension_ranges
from va_export.tensorrt.targets import DEFAULT_TARGETS, check_targets

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.recipe import ExportOptions
    from va_export.models.family import ModelSpec
    from va_export.progress import Stage, StageDisplay

PLUGIN_FILE = "plugins/libva_plugins.so"
_MORE_MEMORY = "free some memory, or use a larger machine"


@dataclass(frozen=True)
class EnginePlan:
    """Which engines a run builds.

    Attributes:
        flavors: the TensorRT flavours; empty when only ONNX is written.
        reason: why there are none.
        library: the plugin library, when the attention is the plugin's.
    """

    flavors: tuple[Flavor, ...] = ()
    reason: str = ""
    library: Path | None = None
    contract: dict[str, Any] = field(default_factory=dict)

    def plugin_entry(self) -> dict[str, Any] | None:
        """The manifest's `plugin`."""
        return None if self.library is None else {"library": PLUGIN_FILE, "contract": self.contract}


def plan_engines(options: ExportOptions, spec: ModelSpec, display: StageDisplay) -> EnginePlan:
    """Decide which engines to build, and check that they can be.

    Raises:
        VaExportError: a TensorRT that was asked for by name is not installed, it does not know a target, the limits
            contradict each other, or the plugin library is missing.
    """
    flavors, reason = _flavors(options, display)
    for flavor in flavors:
        check_targets(_load(flavor), options.targets or DEFAULT_TARGETS[flavor])
    for name in options.components if flavors else ():
        dimension_ranges(name, options.recipe.limits, spec.vision.tokens_per_frame)
    if options.attention != "plugin" or DECODER not in options.components:
        return EnginePlan(flavors, reason)
    try:
        return EnginePlan(flavors, reason, plugin_library(), plugin_contract())
    except VaExportError:
        if flavors:
            raise
        return EnginePlan(flavors, reason)  # ONNX alone needs no library


def _flavors(options: ExportOptions, display: StageDisplay) -> tuple[tuple[Flavor, ...], str]:
    """The flavours to build for, or why there are none."""
    if options.onnx_only:
        return (), "--onnx-only was given"
    if options.flavor != "auto":
        return (cast(Flavor, options.flavor),), ""
    installed = available_flavors()
    if not installed:
        if options.targets:
            _load("tensorrt-rtx")  # engines were asked for: says what to install
        display.note(
            "No TensorRT is installed, so only ONNX is written. For engines: pip install 'va-export[rtx]'"
            " (TensorRT-RTX), or NVIDIA's tensorrt from its own index."
        )
        return (), "no TensorRT is installed"
    # RTX builds ahead of time on any machine; full TensorRT only for the GPU that it finds.
    return ("tensorrt-rtx" if "tensorrt-rtx" in installed else installed[0],), ""


def _load(flavor: Flavor) -> TensorRT:
    try:
        return load_tensorrt(flavor)
    except VaExportError as error:
        raise VaExportError(error.what, where=error.where or f"--tensorrt {flavor}", fix=error.fix) from error


def build_engines(
    options: ExportOptions,
    plan: EnginePlan,
    components: dict[str, dict[str, Any]],
    spec: ModelSpec,
    bundle: BundleWriter,
    display: StageDisplay,
) -> dict[str, dict[str, Any]]:
    """Build every component's engines, or take them from the cache; returns component → flavour → the manifest's
    entry."""
    entries: dict[str, dict[str, Any]] = {}
    if plan.library is not None:
        shutil.copyfile(plan.library, bundle.path(PLUGIN_FILE))
    memory_fix = _memory_fix(sum(map(is_decoder, components)), spec.text.num_layers)
    for flavor in plan.flavors:
        targets = options.targets or DEFAULT_TARGETS[flavor]
        for name, files in components.items():
            kind = DECODER if is_decoder(name) else name
            request = BuildRequest(
                onnx_path=bundle.path(files["onnx"]),
                flavor=flavor,
                targets=targets,
                ranges=dimension_ranges(kind, options.recipe.limits, spec.vision.tokens_per_frame),
                attention="native" if options.attention == "native" else "plugin",
                capacity=options.recipe.limits.max_kv_cache_capacity if kind == DECODER else None,
                plugin_library=plan.library if kind in (DECODER, SCORE) else None,
            )
            relative = f"engines/{flavor}/{name}.engine"
            with display.stage(f"build {name} engine") as stage:
                fix = memory_fix if kind == DECODER else _MORE_MEMORY
                obtained = _obtain(request, bundle, relative, options.engine_cache, stage, fix)
                bundle.record_digest(relative, obtained.sha256)
                info = obtained.info
                entries.setdefault(name, {})[flavor] = _entry(info, relative)
                plugins = f", {len(info.plugin_nodes)} plugin nodes" if info.plugin_nodes else ""
                reused = ", from the engine cache" if obtained.reused else ""
                stage.say(f"{flavor} {info.version}, {','.join(info.targets)}{plugins}{reused}")
    return entries


def _obtain(
    request: BuildRequest, bundle: BundleWriter, relative: str, directory: Path | None, stage: Stage, memory_fix: str
) -> Obtained:
    """The engine in the bundle: from the cache where one is used and has it, else built in a process of its own."""
    destination = bundle.path(relative)

    def build() -> EngineInfo:
        return build_in_process(request, destination, partial(_advance, stage), memory_fix)

    if directory is None:
        return build_only(destination, build)

    def sha256_of(path: Path) -> str:
        inside = path.is_relative_to(bundle.directory)
        return bundle.digest(path.relative_to(bundle.directory).as_posix()) if inside else sha256(path)

    weights = external_files(request.onnx_path)
    version, graph = load_tensorrt(request.flavor).version, graph_sha256(request.onnx_path)
    key = cache_key(request, version, graph, sha256_of, weights)
    return EngineCache(directory).obtain(
        key, destination, build, lambda: stage.say("another va-export builds this engine now: waiting for it")
    )


def _memory_fix(n_shards: int, num_layers: int) -> str:
    if n_shards >= num_layers:
        return _MORE_MEMORY
    more = min(2 * n_shards, num_layers)
    return f"cut the decoder into more shards with --decoder-shards {more}, or {_MORE_MEMORY}"


def _advance(stage: Stage, _phase: str, done: int, total: int) -> None:
    stage.advance(done, total)


def _entry(info: EngineInfo, file: str) -> dict[str, Any]:
    return {
        "file": file,
        "version": info.version,
        "targets": list(info.targets),
        "bytes": info.size_bytes,
        "seconds": round(info.seconds, 3),
        "peak_memory_bytes": info.peak_memory_bytes,
        "plugin_nodes": len(info.plugin_nodes),
        "plugin_records": info.plugin_records,
        "layers": dict(info.layer_counts),
        "profiles": to_builtins(info.profiles),
    }
