"""A bundle changed by hand, whose manifest is made to say so, as somebody who means harm would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def reseal(bundle: Path, *changed: str, without: str | None = None) -> None:
    """Put sizes and hashes of changed or added files into the manifest, and take one entry out."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for name in changed:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if without is not None:
        del manifest["files"][without]
    path.write_text(json.dumps(manifest))


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Write a file of a bundle and reseal it."""
    (bundle / name).write_bytes(content)
    reseal(bundle, name)
