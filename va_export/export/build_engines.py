"""ONNX files → engines, for the TensorRT that is installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from va_export.bundle.decoder_shards import DECODER, DecoderShard
from va_export.bundle.document import EngineEntry, ProfileEntry
from va_export.bundle.manifest import sha256
from va_export.errors import VaExportError
from va_export.native import plugin_contract, plugin_library
from va_export.runtime.backends.external_data import external_files
from va_export.tensorrt.api import Flavor, available_flavors, load_tensorrt
from va_export.tensorrt.build_process import build_in_process
from va_export.tensorrt.cache_key import cache_key, graph_sha256
from va_export.tensorrt.engine_cache import EngineCache, Obtained, build_only
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.targets import DEFAULT_TARGETS, check_targets

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.components import WrittenComponents
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Model
    from va_export.models.component import Component
    from va_export.progress import Stage, StageDisplay
    from va_export.settings import Limits

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


def plan_engines(options: ExportOptions, model: Model, display: StageDisplay) -> EnginePlan:
    """Decide which engines to build, and check that they can be.

    Raises:
        VaExportError: a TensorRT that was asked for by name is not installed, it does not know a target, the limits
            contradict each other, or the plugin library is missing.
    """
    flavors, reason = _flavors(options, display)
    for flavor in flavors:
        check_targets(load_tensorrt(flavor), options.targets or DEFAULT_TARGETS[flavor])
    if flavors:
        _check_limits(options.recipe.limits, model)
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
            load_tensorrt("tensorrt-rtx")  # engines were asked for: says what to install
        display.note(
            "No TensorRT is installed, so only ONNX is written. For engines: pip install 'va-export[rtx]'"
            " (TensorRT-RTX), or NVIDIA's tensorrt from its own index."
        )
        return (), "no TensorRT is installed"
    # RTX builds ahead of time on any machine; full TensorRT only for the GPU that it finds.
    return ("tensorrt-rtx" if "tensorrt-rtx" in installed else installed[0],), ""


def _check_limits(limits: Limits, model: Model) -> None:
    """The checks between limits that only profiles need; the others are made where `Limits` is built."""
    for smaller, larger in (("opt_input_len", "max_input_len"), ("opt_frames", "max_frames")):
        if getattr(limits, smaller) > getattr(limits, larger):
            raise VaExportError(
                f"{smaller} ({getattr(limits, smaller)}) is larger than {larger} ({getattr(limits, larger)})",
                where="limits",
                fix=f"lower {smaller} or raise {larger}",
            )
    tokens = model.visual_tokens(limits.max_frames)
    if tokens > limits.max_input_len and not model.spec.vision.keeps_sizes:  # else smaller frames fit
        raise VaExportError(
            f"max_frames ({limits.max_frames}) are {tokens} visual tokens, more than max_input_len"
            f" ({limits.max_input_len})",
            where="limits",
            fix="lower --max-frames or raise --max-input-len",
        )


def build_engines(
    options: ExportOptions,
    plan: EnginePlan,
    components: list[Component],
    written: WrittenComponents,
    bundle: BundleWriter,
    display: StageDisplay,
) -> None:
    """Build every component's engines, or take them from the cache, and note them in `written`."""
    if plan.library is not None:
        shutil.copyfile(plan.library, bundle.path(PLUGIN_FILE))
    memory_fix = _memory_fix([component.shard for component in components if component.shard])
    for flavor in plan.flavors:
        for component in components:
            entry = written.entries[component.name]
            request = BuildRequest(
                onnx_path=bundle.path(entry.onnx),
                flavor=flavor,
                targets=options.targets or DEFAULT_TARGETS[flavor],
                ranges=entry.ranges,
                attention="native" if options.attention == "native" else "plugin",
                capacity=options.recipe.limits.max_kv_cache_capacity if component.shard else None,
                plugin_library=plan.library if component.has_custom_op else None,
            )
            relative = f"engines/{flavor}/{component.name}.engine"
            with display.stage(f"build {component.name} engine") as stage:
                fix = memory_fix if component.shard else _MORE_MEMORY
                obtained = _obtain(request, bundle, relative, options.engine_cache, stage, fix)
                bundle.record_digest(relative, obtained.sha256)
                info = obtained.info
                engines = {**entry.engines, flavor: _entry(info, relative)}
                written.entries[component.name] = msgspec.structs.replace(entry, engines=engines)
                plugins = f", {len(info.plugin_nodes)} plugin nodes" if info.plugin_nodes else ""
                reused = ", from the engine cache" if obtained.reused else ""
                stage.say(f"{flavor} {info.version}, {','.join(info.targets)}{plugins}{reused}")


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


def _memory_fix(shards: Sequence[DecoderShard]) -> str:
    if not shards or len(shards) >= shards[0].num_layers:
        return _MORE_MEMORY
    more = min(2 * len(shards), shards[0].num_layers)
    return f"cut the decoder into more shards with --decoder-shards {more}, or {_MORE_MEMORY}"


def _advance(stage: Stage, _phase: str, done: int, total: int) -> None:
    stage.advance(done, total)


def _entry(info: EngineInfo, file: str) -> EngineEntry:
    return EngineEntry(
        file=file,
        version=info.version,
        targets=info.targets,
        bytes=info.size_bytes,
        seconds=round(info.seconds, 3),
        peak_memory_bytes=info.peak_memory_bytes,
        plugin_nodes=len(info.plugin_nodes),
        plugin_records=info.plugin_records,
        layers=dict(info.layer_counts),
        profiles=tuple(
            ProfileEntry(
                name=profile.name,
                ranges={name: {"min": r.min, "opt": r.opt, "max": r.max} for name, r in profile.ranges.items()},
            )
            for profile in info.profiles
        ),
    )
