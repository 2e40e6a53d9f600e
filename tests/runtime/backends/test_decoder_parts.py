"""Which components make up a decoder, and on which GPUs they go."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from command_line import va_check, va_run
from msgspec import structs
from refusals import refused
from synthetic_manifest import component_entry, manifest_of

from va_export.bundle.document import ComponentEntry
from va_export.bundle.manifest import Manifest
from va_export.bundle.tensors import TensorInfo
from va_export.documents import convert
from va_export.errors import VaExportError
from va_export.runtime.backends.decoder_parts import assign_devices, decoder_parts, parse_devices, position_axes
from va_export.runtime.bundle import Bundle


def manifest(layers: dict[str, tuple[int, int] | None], num_layers: int = 4) -> Manifest:
    """A bundle of components with these layers."""
    return manifest_of(Path("b"), {name: component_entry(name, of) for name, of in layers.items()}, num_layers)


def test_a_decoder_in_one_piece_is_one_part() -> None:
    (part,) = decoder_parts(manifest({"vision": None, "decoder": None}))
    assert (part.name, list(part.layers), part.is_first, part.is_last) == ("decoder", [0, 1, 2, 3], True, True)


def test_parts_follow_their_layers_not_their_names() -> None:
    entries = {f"decoder_{index}": (index, index + 1) for index in range(12)}
    parts = decoder_parts(manifest({"embedding": None, **dict(sorted(entries.items()))}, 12))
    assert [part.name for part in parts] == [f"decoder_{index}" for index in range(12)]  # not 0, 1, 10, 11, 2


@pytest.mark.parametrize(
    "layers",
    [
        [(0, 2)],
        [(0, 2), (3, 4)],
        [(0, 3), (2, 4)],
        [(0, 2), (2, 5)],
        [(1, 4)],
        [(0, 4), (4, 4)],
        [(0, 2), None],
    ],
)
def test_shards_that_do_not_make_up_the_decoder_are_refused(layers: list[tuple[int, int] | None]) -> None:
    with refused("b", 4):
        decoder_parts(manifest({f"decoder_{index}": one for index, one in enumerate(layers)}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"num_layers": 3}, [3, 4]),
        ({"head_dim": 33}, [33, 32]),
        ({"num_kv_heads": 4}, [4, 2]),
        ({"vocab_size": 1000}, [1000, 263]),
    ],
)
def test_sizes_that_contradict_the_components_are_refused(changes: dict[str, int], named: list[int]) -> None:
    """Not by what the graphs say of inputs that were made by the wrong ones."""
    caches = [TensorInfo(f"past_key_values.{i}.key", "float32", ("batch", 2, "capacity", 32)) for i in range(4)]
    logits = TensorInfo("logits", "float32", ("batch", 263))
    whole = manifest_of(Path("b"), {"decoder": component_entry("decoder", inputs=tuple(caches), outputs=(logits,))}, 4)
    text = structs.replace(whole.data.model.text, **changes)
    data = structs.replace(whole.data, model=structs.replace(whole.data.model, text=text))
    if not named:
        assert len(decoder_parts(Manifest(Path("b"), data))) == 1
        return
    with refused("manifest.json: model.text, components.decoder", *named):
        decoder_parts(Manifest(Path("b"), data))


@pytest.mark.parametrize("layers", [[2, "x"], [2, 3, 4], [2], 2])
def test_layers_that_are_no_range_are_refused(layers: Any) -> None:
    entry = {"role": "decoder", "onnx": "d.onnx", "inputs": [], "outputs": [], "ranges": {}, "layers": layers}
    with pytest.raises(VaExportError) as caught:
        convert(entry, ComponentEntry, what="the manifest", where="m.json", fix="export again")
    assert str(caught.value.where).startswith("m.json: layers")


@pytest.mark.parametrize("axes", [1, 3])
def test_the_first_part_says_how_many_positions_a_token_has(axes: int) -> None:
    inputs = (TensorInfo("position_ids", "int64", (axes, "batch", "sequence")),)
    shards = {f"decoder_{i}": component_entry(f"decoder_{i}", (2 * i, 2 * i + 2), inputs=inputs) for i in range(2)}
    assert position_axes(manifest_of(Path("b"), shards)) == axes
    whole = {"decoder": component_entry("decoder", inputs=inputs)}
    assert position_axes(manifest_of(Path("b"), whole)) == axes


@pytest.mark.parametrize(
    ("n_parts", "devices", "expected"),
    [
        (1, [0], [0]),
        (4, [0], [0, 0, 0, 0]),
        (4, [0, 1], [0, 0, 1, 1]),
        (4, [1, 0], [1, 1, 0, 0]),
        (5, [0, 1], [0, 0, 0, 1, 1]),
        (4, [3, 5, 7], [3, 3, 5, 7]),
        (8, [0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_neighbours_share_a_device(n_parts: int, devices: list[int], expected: list[int]) -> None:
    assert list(assign_devices(n_parts, devices)) == expected


def test_every_device_gets_as_many_parts_or_one_more() -> None:
    for n_parts, n_devices in itertools.product(range(1, 20), range(1, 9)):
        if n_devices <= n_parts:
            assigned = assign_devices(n_parts, range(n_devices))
            assert sorted(assigned) == list(assigned) and set(assigned) == set(range(n_devices))
            counts = [assigned.count(device) for device in range(n_devices)]
            assert max(counts) - min(counts) <= 1
        else:
            with refused("--devices", n_devices, n_parts) as caught:
                assign_devices(n_parts, range(n_devices))
            assert caught.value.fix is not None and f"--decoder-shards {n_devices}" in caught.value.fix


def test_devices_are_read_from_text() -> None:
    assert parse_devices("") is None and parse_devices("0, 2,1") == (0, 2, 1)
    for wrong in ("a", "0,-1", "1,1", "0 1", "0,00"):
        with refused("--devices", repr(wrong)):
            parse_devices(wrong)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_cpu_backend_takes_no_devices(tiny_bundle: Path, backend: str) -> None:
    if backend == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has GPUs")
    with refused("--devices"):
        Bundle.open(tiny_bundle, backend, devices=(0,))
    outcome = va_check(tiny_bundle, "--backend", backend, "--devices", "0")
    outcome.refuses("--devices")
    outcome = va_run(tiny_bundle, "--video", "v", "--prompt", "p", "--backend", backend, "--devices", "0,0")
    outcome.refuses("--devices", repr("0,0"))
