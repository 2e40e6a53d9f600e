"""External data of an ONNX file must lie beside it: a path that leaves the directory is refused before it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx.external_data_helper import uses_external_data

from va_export.errors import VaExportError


def check_external_data(path: Path) -> None:
    """Check every external-data reference of an ONNX file, without reading the data.

    Raises:
        VaExportError: the file cannot be parsed, or a reference is absolute, leaves the directory, is a link to
            outside, or names a file that is missing or too short.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises several unrelated types
        raise VaExportError(
            f"the ONNX file cannot be parsed: {error}", where=path, fix="export the bundle again"
        ) from error
    root = path.parent.resolve()
    functions = (tensor for function in model.functions for tensor in _node_tensors(function.node))
    for tensor in (*_tensors(model.graph), *functions):
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        pure = PurePosixPath(location)
        target = (root / location).resolve()
        if not location or pure.is_absolute() or ".." in pure.parts or not target.is_relative_to(root):
            raise VaExportError(
                f"tensor {tensor.name} refers to external data outside of the bundle: {location!r}",
                where=path,
                fix="do not use this file; export the bundle again",
            )
        spans = [entries.get(key, "0") for key in ("offset", "length")]
        if not all(span.isdecimal() for span in spans):
            raise VaExportError(
                f"tensor {tensor.name} has no sensible place in {location}: offset and length {', '.join(spans)}",
                where=path,
                fix="export the bundle again",
            )
        end = sum(int(span) for span in spans)
        if not target.is_file() or target.stat().st_size < end:
            raise VaExportError(
                f"tensor {tensor.name} needs {end} bytes of {location}, which is missing or shorter",
                where=path,
                fix="copy or export the bundle again",
            )


def external_files(path: Path) -> tuple[Path, ...]:
    """The files with the external data of an ONNX file, by name; the data are not read."""
    model = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in _tensors(model.graph)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / location for location in sorted(locations))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: weights, sparse weights, and constants in its nodes and their subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)
