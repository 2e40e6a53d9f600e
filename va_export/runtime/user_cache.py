"""Where this user's caches lie: below `VA_EXPORT_CACHE`, else below the system's cache directory."""

from __future__ import annotations

import os
from pathlib import Path

from va_export.errors import VaExportError
from va_export.runtime.values import expanded

CACHE_VARIABLE = "VA_EXPORT_CACHE"
OFF = "off"


def resolve_cache(option: str, text: str, name: str) -> Path | None:
    """The directory of one cache: as given; else `name` below `VA_EXPORT_CACHE`, else below the user's cache directory.

    Args:
        option: as a refusal names it, `--engine-cache`.
        text: its value; empty for the default, `off` for none.

    Returns:
        None also where there is no home directory.

    Raises:
        VaExportError: a directory that was given cannot be made.
    """
    if text == OFF:
        return None
    if not text:
        if given := os.environ.get(CACHE_VARIABLE):
            return expanded(CACHE_VARIABLE, given).absolute() / name
        home = os.environ.get("XDG_CACHE_HOME", "")
        try:  # The XDG specification: a path that is not absolute is to be ignored.
            user = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        except RuntimeError:  # no HOME and no entry of this user: there is nowhere to keep anything
            return None
        return user / "va-export" / name
    directory = expanded(option, text).absolute()
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise VaExportError(
            f"the cache of {option} cannot be made: {existing} is no folder that can be written",
            where=directory,
            fix=f"give another {option}, or {OFF}",
        )
    return directory
