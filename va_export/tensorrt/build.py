"""ONNX file → engine file."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from va_export.errors import VaExportError
from va_export.ops.declaration import DOMAIN
from va_export.tensorrt.api import TensorRT, load_tensorrt
from va_export.tensorrt.build_log import BuildLog, OnProgress, create_build_log, create_progress_monitor
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.inspect_engine import find_plugin_records
from va_export.tensorrt.prepare_onnx import PLUGIN_VERSION, PluginNode, PreparedModel, prepare_onnx
from va_export.tensorrt.profiles import Profile, shape_profiles
from va_export.tensorrt.targets import check_targets, set_targets
from va_export.tensorrt.types import Builder, BuilderConfig, Network, OnnxParser


def build_engine(request: BuildRequest, engine_path: Path, on_progress: OnProgress | None = None) -> EngineInfo:
    """Build one engine; `engine_path` appears only when it is complete.

    Args:
        on_progress: called with (phase, steps done, steps in all), possibly from TensorRT's threads.

    Raises:
        VaExportError: with the parser's or the builder's own words.
    """
    start = time.perf_counter()
    onnx_path, attention = request.onnx_path, request.attention
    api = load_tensorrt(request.flavor)
    check_targets(api, request.targets)
    if request.plugin_library is not None and attention == "plugin":
        api.load_plugin_library(request.plugin_library)

    def has_plugin(op_type: str) -> bool:
        return attention == "plugin" and api.has_plugin(op_type, PLUGIN_VERSION, DOMAIN)

    model = prepare_onnx(onnx_path, attention=attention, capacity=request.capacity, has_plugin=has_plugin)
    profiles = shape_profiles(model.input_shapes, request.ranges)
    log = create_build_log(api)
    builder: Builder = _create_builder(api, log)
    # The network's weights point into the parser's memory: it must live until the build is done.
    network, parser = _parse(api, builder, log, model, onnx_path)
    layer_counts = _count_layers(network)
    config = _configure(api, builder, request.targets, profiles, on_progress)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise VaExportError(
            f"{api.label} could not build the engine for {', '.join(request.targets)}: {log.cause()}", where=onnx_path
        )
    _write_atomically(engine_path, serialized)
    del serialized, network, parser
    return EngineInfo(
        size_bytes=engine_path.stat().st_size,
        seconds=time.perf_counter() - start,
        layer_counts=layer_counts,
        plugin_nodes=model.plugin_nodes,
        plugin_records=_check_plugins(engine_path, model.plugin_nodes),
        flavor=request.flavor,
        version=api.version,
        targets=request.targets,
        profiles=profiles,
        input_shapes=model.input_shapes,
    )


def _create_builder(api: TensorRT, log: BuildLog) -> Builder:
    try:
        builder: Builder = api.module.Builder(log.logger)
    except TypeError as error:  # full TensorRT's constructor returns null where there is no GPU
        raise VaExportError(f"{api.label} cannot start a builder here: {log.cause()}", where=api.flavor) from error
    return builder


def _parse(
    api: TensorRT, builder: Builder, log: BuildLog, model: PreparedModel, onnx_path: Path
) -> tuple[Network, OnnxParser]:
    network = api.create_network(builder)
    parser: OnnxParser = api.module.OnnxParser(network, log.logger)
    if not parser.parse(model.model_bytes, str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        details = [
            f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc().strip()}"
            for error in errors
        ]
        raise VaExportError(
            f"{api.label} could not parse the model: {'; '.join(details) or log.cause()}", where=onnx_path
        )
    return network, parser


def _count_layers(network: Network) -> dict[str, int]:
    counts = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    return dict(sorted(counts.items()))


def _configure(
    api: TensorRT,
    builder: Builder,
    targets: tuple[str, ...],
    profiles: Sequence[Profile],
    on_progress: OnProgress | None,
) -> BuilderConfig:
    config = builder.create_builder_config()
    set_targets(api, config, targets)
    config.clear_flag(api.module.BuilderFlag.TF32)  # on by default; a float32 export shall compute in float32
    for profile in profiles:
        optimization = builder.create_optimization_profile()
        for name, shapes in profile.ranges.items():
            optimization.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(optimization) < 0:
            raise VaExportError(f"{api.label} refused the optimisation profile", where=profile.name)
    if on_progress is not None:
        config.progress_monitor = create_progress_monitor(api, on_progress)
    return config


def partial_file(path: Path, process: int) -> Path:
    """Where a process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{process}.partial")


def _write_atomically(path: Path, content: Any) -> None:
    """Write a buffer beside `path` and rename: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_file(path, os.getpid())
    try:
        with partial.open("wb") as file:
            file.write(memoryview(content))
        partial.replace(path)
    except OSError as error:
        raise VaExportError(f"the file cannot be written: {error.strerror}", where=path) from error
    finally:
        partial.unlink(missing_ok=True)


def _check_plugins(engine_path: Path, nodes: Sequence[PluginNode]) -> int:
    """How often the engine file names the plugins of `nodes`.

    Raises:
        VaExportError: less often than there are nodes, so that some were not built as plugins.
    """
    records = 0
    for op_type, count in Counter(node.op_type for node in nodes).items():
        found = len(find_plugin_records(engine_path, op_type, PLUGIN_VERSION, DOMAIN))
        if found < count:
            raise VaExportError(
                f"the engine holds {found} {op_type} plugins where the model has {count}", where=engine_path
            )
        records += found
    return records
