"""What the lasting files of an export depend on: a later run continues only work on the very same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.checkpoint.hashes import identity
from va_export.machine import library_versions

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Source
    from va_export.progress import StageDisplay

# Options that leave the ONNX files as they are. An option that is not listed counts, so a new one is safe.
_WITHOUT_EFFECT = {
    "recipe", "output", "attention", "flavor", "targets", "onnx_only", "overwrite", "resume", "video", "sampling",
    "allow_truncated", "question", "new_tokens", "atol", "rtol", "latency_iterations", "parity", "engine_cache",
}  # fmt: skip
_DECIDING_ROOMS = ("bundle", "checkpoint", "export", "graph", "models", "ops", "passes")


def continue_or_start(options: ExportOptions, source: Source, bundle: BundleWriter, display: StageDisplay) -> None:
    """Go on from an earlier run's work if it was on the same inputs; if those have changed, say which and start
    anew."""
    unfinished = bundle.is_worth_keeping
    changed = bundle.begin(fingerprint(options, source))
    if changed and unfinished:
        display.note(
            f"An earlier run left unfinished work, and since then {', '.join(changed)} changed: starting anew."
        )
    elif unfinished:
        display.note("Continuing an earlier run's unfinished work.")


def fingerprint(options: ExportOptions, source: Source) -> dict[str, Any]:
    """Name → plain data, one entry for everything that a message may have to name."""
    checkpoint, recipe = source.checkpoint, options.recipe
    inputs: dict[str, Any] = {
        f"option {field.name}": getattr(options, field.name)
        for field in fields(options)
        if field.name not in _WITHOUT_EFFECT
    }
    inputs["the model"] = asdict(source.spec)
    inputs["the weights"] = recipe.weights_source if recipe.is_random else "from files"
    for file in checkpoint.files():
        inputs[f"checkpoint file {file.path.name}"] = identity(file.path)
    for library, version in library_versions().items():
        inputs[f"library {library}"] = version
    inputs["va-export itself"] = _sources_sha256()
    return inputs


@cache
def _sources_sha256() -> str:
    """Over the Python files that decide the written bytes; what proves, reports or runs a bundle may change meanwhile,
    and engines have a key of their own (`tensorrt.cache_key`)."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for room in _DECIDING_ROOMS for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
