"""va-export: video-language models with VideoAnchor attention, exported to ONNX and TensorRT, and proved.

`Bundle` opens and runs what the `va-export` command makes; `va_export.anchor` is VideoAnchor itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from va_export._version import __version__
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.runtime.bundle import Bundle
    from va_export.runtime.generation import Generation

__all__ = ["Bundle", "Generation", "VaExportError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the runtime when it is first asked for, so that `va-export --version` stays quick."""
    if name in ("Bundle", "Generation"):
        from va_export.runtime import bundle

        return getattr(bundle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
