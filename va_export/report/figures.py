"""Numbers as the page writes them; a dash stands for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "–"


def percent(share: float | None) -> str:
    """A share as a percentage, two significant digits below 10 %; a multiple from ten times upwards."""
    if share is None:
        return UNKNOWN
    value = 100 * share
    if value >= 1000:
        return f"{share:.0f} times" if share < 1e6 else "over a million times"
    return f"{value:.0f} %" if abs(value) >= 10 or value == 0 else f"{value:.2g} %"


def error(value: float | None) -> str:
    """An error with two significant digits."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:.2g}" if 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def cosine(value: float | None) -> str:
    """A cosine with as many nines as it has, seven decimals at most."""
    return UNKNOWN if value is None else f"{value:.7f}".rstrip("0").rstrip(".")


def byte_count(value: float | None) -> str:
    """Bytes in the binary unit that leaves less than 1024."""
    if value is None:
        return UNKNOWN
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    place = min(int(math.log(value, 1024)), len(units) - 1) if value >= 1 else 0
    return f"{value / 1024**place:.{0 if place == 0 else 1}f} {units[place]}"


def milliseconds(value: float | None) -> str:
    """Three significant digits with the unit that suits them."""
    if value is None:
        return UNKNOWN
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"
