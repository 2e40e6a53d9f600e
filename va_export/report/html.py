"""report.html: what a bundle is and whether it was proven, as one page that needs no network and no script."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from va_export.errors import VaExportError
from va_export.report import charts, figures
from va_export.report.contents import environment_rows, read_contents
from va_export.report.gallery import read_gallery
from va_export.report.verdict import judge, read_parity

REPORT_NAME = "report.html"


def render_report(bundle_directory: Path) -> Path:
    """Write the page from a bundle's manifest.json, parity.json, latency.json and reference.npz.

    Only the manifest must be there: the page says what else is missing. An earlier page is replaced in one step.

    Returns:
        the path of report.html.

    Raises:
        VaExportError: no manifest, a file that cannot be read, or tokens that do not fill the frames.
    """
    manifest = _read_json(bundle_directory / "manifest.json")
    if manifest is None:
        raise VaExportError(
            "there is no manifest.json, so there is nothing to report on",
            where=bundle_directory,
            fix="give the directory of a bundle",
        )
    parity = _read_json(bundle_directory / "parity.json")
    latency = _read_json(bundle_directory / "latency.json")
    video = manifest.get("video") or {}
    runs = read_parity(parity or {})
    groups = charts.read_latency(latency or {})
    environment = (latency or {}).get("environment") or {}
    page = (
        _templates()
        .get_template("template.html.j2")
        .render(
            contents=read_contents(manifest),
            verdict=judge(parity, runs),
            reference=(parity or {}).get("reference") or "the reference",
            parity_runs=runs,
            not_run=_not_run(parity),
            gallery=read_gallery(bundle_directory / "reference.npz", video.get("indices") or ()),
            headline=_headline(groups, manifest.get("attention")),
            latency=[(group, _chart(group, groups)) for group in groups],
            environment=environment_rows(environment),
            measured_with=sorted((environment.get("libraries") or {}).items()),
            cpu=environment.get("cpu") or "an unnamed CPU",
        )
    )
    return _write(bundle_directory / REPORT_NAME, page)


def _not_run(parity: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What parity.json says was left out, with empty texts where it gives no reason or no command."""
    return [
        {key: str(entry.get(key) or "") for key in ("what", "reason", "command")}
        for entry in (parity or {}).get("not_run") or ()
    ]


def _headline(groups: tuple[charts.LatencyGroup, ...], attention: str | None) -> charts.LatencyGroup | None:
    """The configuration for the page's top: on a device rather than the host, with the bundle's own attention."""
    return min(groups, key=lambda group: (group.on_host, group.attention != attention), default=None)


def _chart(group: charts.LatencyGroup, groups: tuple[charts.LatencyGroup, ...]) -> Markup:
    """The group's chart, on one scale with all groups of its device, so that their bars can be compared."""
    return charts.latency_chart(group, charts.longest_ms(other for other in groups if other.device == group.device))


def _templates() -> Environment:
    """Jinja2 with escaping always on, in its sandbox: names of files, models and devices come from users."""
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("va_export", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": figures.percent,
        "error": figures.error,
        "cosine": figures.cosine,
        "bytes": figures.byte_count,
        "ms": figures.milliseconds,
    }
    return environment


def _read_json(path: Path) -> dict[str, Any] | None:
    """The document, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VaExportError(f"the file cannot be read: {error}", where=path, fix="export the bundle again") from error
    if not isinstance(data, dict):
        raise VaExportError("the file does not hold a JSON object", where=path, fix="export the bundle again")
    return data


def _write(path: Path, page: str) -> Path:
    """Write beside the destination, then rename: a reader sees the old page or the new one."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise VaExportError(f"the report cannot be written: {error.strerror or error}", where=path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
