"""manifest.json as rows of the page: the model, the components, the engines, the files, the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from va_export.report import figures

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Engine:
    """One built engine; None where the manifest does not say."""

    component: str
    backend: str
    file: str
    version: str
    targets: str
    plugin_nodes: str
    profiles: tuple[str, ...]
    bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class BundleFile:
    """One file, with its whole SHA-256."""

    name: str
    bytes: int | None
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
    key_gain: float | None
    value_gain: float | None


def read_contents(manifest: Mapping[str, Any]) -> Contents:
    """The page's view of a manifest; every part of it may be missing."""
    model, gains, tool = (_table(manifest, name) for name in ("model", "gains", "tool"))
    date = str(manifest.get("created") or "")[:10]  # an ISO 8601 time
    files = tuple(
        BundleFile(str(name), entry.get("bytes"), str(entry.get("sha256", "")))
        for name, entry in sorted(_table(manifest, "files").items())
    )
    return Contents(
        model=str(model.get("name", "unnamed model")),
        precision=str(manifest.get("precision", figures.UNKNOWN)),
        attention=str(manifest.get("attention", figures.UNKNOWN)),
        random_weights=model.get("weights") == "random",
        made=", ".join(
            part for part in (f"{tool.get('name', 'va-export')} {tool.get('version', '')}".strip(), date) if part
        ),
        total_bytes=sum(file.bytes or 0 for file in files),
        facts=_facts(manifest, model),
        components=tuple(
            (str(name), str(entry.get("onnx") or figures.UNKNOWN), str(entry.get("onnx_native") or ""))
            for name, entry in _table(manifest, "components").items()
        ),
        engines=_engines(manifest),
        files=files,
        gains=_rows(gains),
        score=_rows(_table(manifest, "score")),
        limits=_rows(_table(manifest, "limits")),
        libraries=_rows(_table(manifest, "libraries")),
        key_gain=_highest_gain(gains.get("alpha_k")),
        value_gain=_highest_gain(gains.get("alpha_v")),
    )


def environment_rows(environment: Mapping[str, Any]) -> Rows:
    """The machine of latency.json, libraries left out; an absent GPU is said, not left out."""
    known = {key: value for key, value in environment.items() if key != "libraries"}
    if known and known.get("gpu") is None:
        known["gpu"] = "none"
    if "memory_bytes" in known:
        known["memory"] = figures.byte_count(known.pop("memory_bytes"))
    return _rows(known)


def _facts(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> Rows:
    text, vision, video = _table(model, "text"), _table(model, "vision"), _table(manifest, "video")
    plugin = _table(manifest, "plugin")
    decoder = _joined(
        text,
        num_layers="{} layers",
        hidden_size="width {}",
        num_heads="{} query heads",
        num_kv_heads="{} KV heads",
        head_dim="head size {}",
        vocab_size="{} vocabulary entries",
    )
    operators = ", ".join(f"{name} v{version}" for name, version in _table(manifest, "ops").items())
    rows = (
        ("Family", model.get("family")),
        ("Source", model.get("source")),
        ("Revision", model.get("revision")),
        ("Weights", model.get("weights")),
        ("Language model", decoder),
        ("Vision", _joined(vision, image_size="{0} × {0} pixels", tokens_per_frame="{} tokens a frame")),
        ("ONNX opset", manifest.get("opset")),
        ("Custom operators", operators),
        ("Plugin library", plugin.get("library") or "none"),
        ("Tokenizer", manifest.get("tokenizer") or "none"),
        ("Video", _joined(video, file="{}", frames="{} frames")),
    )
    return tuple((name, str(value)) for name, value in rows if value)


def _engines(manifest: Mapping[str, Any]) -> tuple[Engine, ...]:
    return tuple(
        Engine(
            component=str(component),
            backend=str(backend),
            file=str(engine.get("file", figures.UNKNOWN)),
            version=str(engine.get("version") or figures.UNKNOWN),
            targets=", ".join(map(str, engine.get("targets") or ())) or figures.UNKNOWN,
            plugin_nodes=str(engine.get("plugin_nodes", figures.UNKNOWN)),
            profiles=tuple(_profile(profile) for profile in engine.get("profiles") or ()),
            bytes=engine.get("bytes"),
            seconds=engine.get("seconds"),
        )
        for component, entry in _table(manifest, "components").items()
        for backend, engine in _table(entry, "engines").items()
    )


def _profile(profile: Any) -> str:
    """A profile's name, and each input's smallest / tuned / largest shape where they are recorded."""
    if not isinstance(profile, Mapping):
        return str(profile)
    shapes = _table(profile, "ranges") or _table(profile, "inputs")
    ranges = [
        f"{name} {' / '.join(_shape(shape.get(bound)) for bound in ('min', 'opt', 'max'))}"
        for name, shape in shapes.items()
        if isinstance(shape, Mapping)
    ]
    return ": ".join(part for part in (str(profile.get("name", "")), ", ".join(ranges)) if part)


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) if isinstance(shape, Sequence) else str(shape)


def _joined(values: Mapping[str, Any], **forms: str) -> str:
    return ", ".join(form.format(values[key]) for key, form in forms.items() if values.get(key) is not None)


def _highest_gain(alpha: Any) -> float | None:
    """The gain at score 1: 1 + α (section 3.3 of arXiv 2509.25151)."""
    return 1 + alpha if isinstance(alpha, int | float) else None


def _rows(values: Mapping[str, Any]) -> Rows:
    return tuple((str(name).replace("_", " "), str(value)) for name, value in values.items())


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested table, empty where it is missing or null."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}
