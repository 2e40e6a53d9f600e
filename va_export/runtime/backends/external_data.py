"""External data of an ONNX file must lie beside it: a path that leaves the directory is refused before it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import onnx
from onnx.external_data_helper import uses_external_data

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest


@contextmanager
def held_graph(manifest: Manifest, name: str, *, stay_open: bool = False) -> Iterator[Path]:
    """An ONNX file of a bundle to be opened by its name, and its external data beside it: those of the bundle that was
    opened, whatever lies at its path now.

    Args:
        stay_open: whoever opens it keeps the data mapped.

    Raises:
        VaExportError: as `check_external_data`, or the data are a file that the manifest does not list; at the end,
            too, a file was replaced or removed since the bundle was opened.
    """
    manifest.path(name)
    with manifest.held.in_place(name) as root:
        locations = check_external_data(root / name)
    files = [name, *((PurePosixPath(name).parent / location).as_posix() for location in sorted(locations))]
    for file in files:
        manifest.path(file)
    with manifest.held.in_place(*files, stay_open=stay_open) as root:
        yield root / name


def check_external_data(path: Path) -> set[str]:
    """Check every external-data reference of an ONNX file, without reading the data; the files that it refers to.

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
    root, locations = path.parent.resolve(), set()
    functions = (tensor for function in model.functions for tensor in _node_tensors(function.node))
    for tensor in (*_tensors(model.graph), *functions):
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not all(isinstance(text, str) for entry in entries.items() for text in entry):
            raise VaExportError(  # protobuf gives bytes for text that is no UTF-8
                f"tensor {tensor.name!r} refers to external data in bytes that are no text",
                where=path,
                fix="export the bundle again",
            )
        location = entries.get("location", "")
        if not _lies_below(root, location):
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
        if not (root / location).is_file() or (root / location).stat().st_size < end:
            raise VaExportError(
                f"tensor {tensor.name} needs {end} bytes of {location}, which is missing or shorter",
                where=path,
                fix="copy or export the bundle again",
            )
        locations.add(location)
    return locations


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


def _lies_below(root: Path, location: str) -> bool:
    """Whether a location is a name below a directory, links followed. Names of other systems and with null characters
    are none."""
    pure = PurePosixPath(location)
    if not location.isprintable() or "\\" in location or pure.is_absolute() or ".." in pure.parts or not pure.parts:
        return False
    return (root / location).resolve().is_relative_to(root)


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
