"""From frames and a question to a model's inputs, on the host.

How a model wants it is plain data in a bundle's `processing.json`, so that running it needs neither the family that
exported it nor PyTorch. A kind of processing is named by what it does, by the tag `kind` of that file; each is a file
of this folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from va_export.documents import read
from va_export.runtime.processing.fixed_frames import FixedFrames
from va_export.runtime.processing.media import Image, Media, Video
from va_export.runtime.processing.patch_grid import PatchGrid
from va_export.runtime.processing.prepared import Prepared

__all__ = ["PROCESSING_NAME", "Image", "Media", "Prepared", "Processing", "Video", "read_processing"]

PROCESSING_NAME = "processing.json"
Processing = FixedFrames | PatchGrid


def read_processing(path: Path) -> Processing:
    """What a bundle's processing.json says.

    Raises:
        VaExportError: no such file, or not of a known kind and its form; with the place in the file.
    """
    form: Any = Processing  # a union of forms is one for msgspec, and no type for mypy
    processing: Processing = read(path, form, what="the processing", fix="copy or export the bundle again")
    return processing
