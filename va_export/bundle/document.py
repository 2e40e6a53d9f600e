"""The form of `manifest.json`, a bundle's table of contents."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import field

from va_export.bundle.tensors import Profiles, TensorInfo
from va_export.documents import Form
from va_export.settings import GainSettings, Limits, ScoreSettings

Precision = Literal["fp32", "fp16", "bf16"]
Attention = Literal["plugin", "native"]


class FileEntry(Form, frozen=True):
    """One file of the bundle."""

    bytes: int
    sha256: str


class ProfileEntry(Form, frozen=True):
    """One optimisation profile of an engine: per input its smallest, tuned and largest shape."""

    name: str
    ranges: dict[str, dict[Literal["min", "opt", "max"], tuple[int, ...]]]


class EngineEntry(Form, frozen=True):
    """One engine.

    Attributes:
        version: of the TensorRT that built it and that alone runs it.
        targets: GPU architectures, as `sm86`.
        seconds, peak_memory_bytes: of its build; the latter None where the build had no process of its own.
        plugin_nodes, plugin_records: nodes that a plugin computes, and how often such a plugin stands in the file.
        layers: number of layers before fusion, by TensorRT's type.
    """

    file: str
    version: str
    targets: tuple[str, ...]
    bytes: int
    seconds: float
    peak_memory_bytes: int | None
    plugin_nodes: int
    plugin_records: int
    layers: dict[str, int]
    profiles: tuple[ProfileEntry, ...]


class ComponentEntry(Form, frozen=True):
    """One part of the model, which is one ONNX file and one engine for each TensorRT.

    Attributes:
        role: the part of the model that it is, or is a piece of.
        onnx, onnx_native: its graph, and the graph over the same weights whose attention is in standard operators.
        layers: [first, stop) of the decoder's layers in it.
        inputs, outputs: what its graphs take and give, in order.
        ranges: the shapes that it is made for.
    """

    role: Literal["vision", "embedding", "decoder", "score"]
    onnx: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ranges: Profiles
    onnx_native: str | None = None
    layers: tuple[int, int] | None = None
    engines: dict[str, EngineEntry] = field(default_factory=dict)


class TextSizes(Form, frozen=True):
    """The decoder's sizes.

    Attributes:
        whole_from: a prompt that reaches this position has to be prefilled in one call, for there the rotary embedding
            follows the call's last position; None where it never does.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    whole_from: int | None


class VisionSizes(Form, frozen=True):
    """The vision tower's sizes; `positions_per_frame` are rows of its hidden states."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    positions_per_frame: int


class ModelEntry(Form, frozen=True):
    """The model, and where it came from.

    Attributes:
        source: the checkpoint or what stands in its place, for people.
        commit: the Hub's name of exactly these files.
        checkpoint_files: of the weights, where they were files.
        family: the folder of `va_export.models` that read it.
    """

    name: str
    source: str
    revision: str | None
    commit: str | None
    checkpoint_files: dict[str, FileEntry]
    family: str
    weights: Literal["checkpoint", "random"]
    text: TextSizes
    vision: VisionSizes
    image_token_id: int | None


class ToolEntry(Form, frozen=True):
    """What made the bundle."""

    name: str
    version: str


class ManifestDocument(Form, frozen=True):
    """All of `manifest.json`.

    Attributes:
        created: ISO 8601.
        precision_loss: weights that the precision changed (`export.weight_losses`).
        ops: our operators → version.
        decoder_shards: how many there are, what was asked for, and why so many.
        plugin: the library that the engines need, and what it says of itself.
        video: the clip that proved the bundle.
        parity: whether it passed; None where it was not run.
        files: every file but this one, by its path in the bundle.
    """

    manifest_version: int
    tool: ToolEntry
    created: str
    model: ModelEntry
    precision: Precision
    precision_loss: dict[str, Any]
    attention: Attention
    opset: int
    ops: dict[str, int]
    libraries: dict[str, str]
    components: dict[str, ComponentEntry]
    decoder_shards: dict[str, Any]
    limits: Limits
    gains: GainSettings
    score: ScoreSettings
    plugin: dict[str, Any] | None
    tokenizer: str | None
    files: dict[str, FileEntry]
    video: dict[str, Any] | None = None
    parity: dict[str, Any] = field(default_factory=dict)
