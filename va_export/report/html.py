"""report.html: what a bundle is and whether it was proven, as one page that needs no network and no script."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup
from msgspec import structs

from va_export.bundle.document import ManifestDocument
from va_export.documents import read
from va_export.errors import VaExportError
from va_export.proof.documents import Latency, Parity
from va_export.report import charts, figures, verdict
from va_export.report.contents import environment_rows, read_contents
from va_export.report.gallery import read_gallery

T = TypeVar("T")
REPORT_NAME = "report.html"


def render_report(bundle_directory: Path, manifest: ManifestDocument) -> Path:
    """Write the page from a bundle's manifest, parity.json, latency.json and reference.npz.

    The page says which of the files are missing. An earlier page is replaced in one step.

    Returns:
        the path of report.html.

    Raises:
        VaExportError: a file that cannot be read, or tokens that do not fill the frames.
    """
    parity = _read_if_there(bundle_directory / "parity.json", Parity)
    latency = _read_if_there(bundle_directory / "latency.json", Latency)
    video = manifest.video or {}
    groups = charts.group_runs(latency)
    environment = structs.asdict(latency.environment) if latency else {}
    page = (
        _templates()
        .get_template("template.html.j2")
        .render(
            contents=read_contents(manifest),
            verdict=verdict.judge(parity),
            reference=parity.reference if parity else "the reference",
            parity_runs=parity.runs if parity else (),
            not_run=parity.not_run if parity else (),
            gallery=read_gallery(bundle_directory / "reference.npz", video.get("indices") or ()),
            headline=_headline(groups, manifest.attention),
            latency=[(group, _chart(group, groups)) for group in groups],
            environment=environment_rows(environment),
            measured_with=sorted(latency.environment.libraries.items()) if latency else [],
            cpu=latency.environment.cpu if latency else "",
        )
    )
    return _write(bundle_directory / REPORT_NAME, page)


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
        "meaning": verdict.meaning,
        "outcome": verdict.outcome,
        "bounds": verdict.bounds,
        "steps": verdict.steps,
        "label": charts.label,
    }
    return environment


def _read_if_there(path: Path, form: type[T]) -> T | None:
    """The document, or None where there is no such file."""
    return read(path, form, what="the file", fix="export the bundle again") if path.is_file() else None


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
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise VaExportError(f"the report cannot be written: {error.strerror or error}", where=path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
