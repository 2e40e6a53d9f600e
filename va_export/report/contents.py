"""The manifest as rows of the page: the model, the components, the engines, the files, the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from va_export.bundle.document import EngineEntry, ManifestDocument, ProfileEntry
from va_export.report import figures

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Engine:
    """One built engine."""

    component: str
    backend: str
    entry: EngineEntry

    @property
    def targets(self) -> str:
        """The GPUs that it runs on."""
        return ", ".join(self.entry.targets)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Each profile's name, and every input's smallest / tuned / largest shape."""
        return tuple(_profile(profile) for profile in self.entry.profiles)


@dataclass(frozen=True)
class BundleFile:
    """One file, with its whole SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Contents:
    """What a bundle is and holds."""

    model: str
    precision: str
    attention: str
    random_weights: bool
    made: str
    total_bytes: int
    facts: Rows
    components: tuple[tuple[str, str, str], ...]
    engines: tuple[Engine, ...]
    files: tuple[BundleFile, ...]
    gains: Rows
    score: Rows
    limits: Rows
    libraries: Rows
    key_gain: float
    value_gain: float


def read_contents(manifest: ManifestDocument) -> Contents:
    """The page's view of a manifest."""
    files = tuple(BundleFile(name, entry.bytes, entry.sha256) for name, entry in sorted(manifest.files.items()))
    return Contents(
        model=manifest.model.name,
        precision=manifest.precision,
        attention=manifest.attention,
        random_weights=manifest.model.weights == "random",
        made=f"{manifest.tool.name} {manifest.tool.version}, {manifest.created[:10]}",  # an ISO 8601 time
        total_bytes=sum(file.bytes for file in files),
        facts=_facts(manifest),
        components=tuple((name, entry.onnx, entry.onnx_native or "") for name, entry in manifest.components.items()),
        engines=tuple(
            Engine(component, backend, engine)
            for component, entry in manifest.components.items()
            for backend, engine in entry.engines.items()
        ),
        files=files,
        gains=_rows(msgspec.to_builtins(manifest.gains)),
        score=_rows(msgspec.to_builtins(manifest.score)),
        limits=_rows(msgspec.to_builtins(manifest.limits)),
        libraries=_rows(manifest.libraries),
        # The gain at score 1: 1 + α (section 3.3 of arXiv 2509.25151).
        key_gain=1 + manifest.gains.alpha_k,
        value_gain=1 + manifest.gains.alpha_v,
    )


def environment_rows(environment: Mapping[str, Any]) -> Rows:
    """The machine of latency.json, libraries left out; an absent GPU is said, not left out."""
    known = {key: value for key, value in environment.items() if key != "libraries"}
    if known and known.get("gpu") is None:
        known["gpu"] = "none"
    if "memory_bytes" in known:
        known["memory"] = figures.byte_count(known.pop("memory_bytes"))
    return _rows(known)


def _facts(manifest: ManifestDocument) -> Rows:
    model, video = manifest.model, manifest.video or {}
    text, vision = model.text, model.vision
    decoder = (
        f"{text.num_layers} layers, width {text.hidden_size}, {text.num_heads} query heads, {text.num_kv_heads} KV"
        f" heads, head size {text.head_dim}, {text.vocab_size} vocabulary entries"
    )
    rows = (
        ("Family", model.family),
        ("Source", model.source),
        ("Revision", model.revision),
        ("Weights", model.weights),
        ("Language model", decoder),
        ("Vision", f"{vision.num_layers} layers, width {vision.hidden_size}"),
        ("ONNX opset", manifest.opset),
        ("Custom operators", ", ".join(f"{name} v{version}" for name, version in manifest.ops.items())),
        ("Plugin library", (manifest.plugin or {}).get("library") or "none"),
        ("Tokenizer", manifest.tokenizer or "none"),
        ("Video", ", ".join(form.format(video[key]) for key, form in _VIDEO.items() if key in video)),
    )
    return tuple((name, str(value)) for name, value in rows if value)


_VIDEO = {"file": "{}", "frames": "{} frames"}


def _profile(profile: ProfileEntry) -> str:
    ranges = [
        f"{name} {' / '.join('×'.join(map(str, shape)) for shape in shapes.values())}"
        for name, shapes in profile.ranges.items()
    ]
    return f"{profile.name}: {', '.join(ranges)}"


def _rows(values: Mapping[str, Any]) -> Rows:
    return tuple((name.replace("_", " "), str(value)) for name, value in values.items())
