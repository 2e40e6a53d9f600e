"""The form of an evidence file, and the only way to write one.

    {"device":   {"name", "driver", "cuda", "torch", ...},
     "commit", "date",
     "ceilings": {"matmul_bf16_tflops", "copy_tb_per_s"},
     "checks":   [{"name", "shape", "dtype", "max_rel_err", "tolerance", "passed"}],
     "timings":  [{"op", "shape", "dtype", "ours_us", "ours_range_us": [min, max], "peers_us": {name: median}}],
     "targets":  [{"name", "measured", "relation", "bound", "unit", "passed"}]}

Times are medians in microseconds. A peer's name ends in `_plain` (without anchors: a ceiling) or `_bias` (the same
result as ours). null stands for what could not be had: a check that compares no numbers has neither error nor
tolerance, a peer that refused a shape has no time and says why in `notes`. Rows may carry the further keys of
`_OPTIONAL`; unknown keys are refused, so that a misspelt one cannot pass for a missing one.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from va_export.errors import VaExportError

Row = dict[str, Any]
Document = dict[str, Any]

ATTENTION_SHAPE = {"batch", "query_heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"}
SCORE_SHAPE = {"tokens", "dim", "pca_rank", "iterations"}
_SHAPE_OF_OP = {"anchored_attention": ATTENTION_SHAPE, "subspace_score": SCORE_SHAPE}

_DOCUMENT = {"device", "commit", "date", "ceilings", "checks", "timings"}
_DEVICE = {"name", "driver", "cuda", "torch"}
_CEILINGS = {"matmul_bf16_tflops", "copy_tb_per_s"}
_CHECK = {"name", "shape", "dtype", "max_rel_err", "tolerance", "passed"}
_TIMING = {"op", "shape", "dtype", "ours_us", "ours_range_us", "peers_us"}
_TARGET = {"name", "measured", "relation", "bound", "unit", "passed"}
_OPTIONAL = {
    "document": {"targets"},
    "check": {"message", "variant"},  # variant: which of several kernels or settings
    "timing": {
        *("variant", "peers_range_us", "notes", "ours_tflops", "ours_tb_per_s", "repeats"),
        *("ours_peak_bytes", "peers_peak_bytes"),  # device memory, weights included
    },
    "target": {"message"},
}
_RELATIONS = {">=": lambda measured, bound: measured >= bound, "<=": lambda measured, bound: measured <= bound}


def begin_evidence(device: Row, commit: str, ceilings: Row) -> Document:
    """A document without rows, dated today (UTC); arguments as `describe_device`, `current_commit` and
    `measure_ceilings` of `va_export.evidence.device` give them."""
    today = datetime.now(UTC).date().isoformat()
    rows: dict[str, list[Row]] = {"checks": [], "timings": [], "targets": []}
    return {"device": device, "commit": commit, "date": today, "ceilings": ceilings, **rows}


def check_row(name: str, passed: bool, **values: Any) -> Row:
    """A row of `checks`; what is not given is null. `passed` must follow from the numbers where there are any."""
    return {
        "name": name,
        "shape": values.pop("shape", None),
        "dtype": values.pop("dtype", None),
        "max_rel_err": values.pop("max_rel_err", None),
        "tolerance": values.pop("tolerance", None),
        "passed": bool(passed),
        **{key: value for key, value in values.items() if value is not None},
    }


def target_row(name: str, measured: float | None, relation: str, bound: float, unit: str) -> Row:
    """A row of `targets`; what was not measured is not met."""
    passed = measured is not None and math.isfinite(measured) and bool(_RELATIONS[relation](measured, bound))
    return {
        "name": name,
        "measured": measured if measured is None or math.isfinite(measured) else None,
        "relation": relation,
        "bound": bound,
        "unit": unit,
        "passed": passed,
    }


def failures(document: Document) -> list[str]:
    """Names of the checks and targets that did not pass; a document without any row says so instead."""
    rows = [*document["checks"], *document.get("targets", [])]
    if not rows and not document["timings"]:
        return ["nothing was checked and nothing was timed"]
    return [row["name"] for row in rows if not row["passed"]]


def evidence_path(document: Document, folder: Path, topic: str) -> Path:
    """`folder/<gpu>-<topic>.json`."""
    device = re.sub(r"[^a-z0-9]+", "-", document["device"]["name"].lower()).strip("-")
    return folder / f"{device}-{topic}.json"


def write_evidence(document: Document, folder: Path, topic: str) -> Path:
    """Check the form, write the file whole or not at all, and give its path.

    Raises:
        VaExportError: the document has another form, or was made on a CPU and would lie among the evidence.
    """
    check_evidence(document)
    path = evidence_path(document, folder, topic)
    resolved = folder.resolve()
    if document["device"]["name"].lower() == "cpu" and (resolved.parent.name, resolved.name) == ("engines", "evidence"):
        raise VaExportError(
            "figures of a CPU are no evidence",
            where=path,
            fix="run this on a machine with an NVIDIA GPU, or write the trial to another folder (--output)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(_as_text(document), encoding="utf-8")
    unfinished.replace(path)
    return path


def _as_text(document: Document) -> str:
    """JSON with a line a row, so that thousands of rows stay readable and differences between files do too."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, allow_nan=False, ensure_ascii=False) for row in value)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def read_evidence(path: Path) -> Document:
    """The document in a file, its form checked.

    Raises:
        VaExportError: no JSON, another form, or a name that is not the device's.
    """
    try:
        document: Document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VaExportError(f"no JSON: {error}", where=path, fix="run the script that wrote it again") from error
    try:
        check_evidence(document)
    except VaExportError as error:
        raise VaExportError(error.what, where=f"{path}: {error.where}", fix=error.fix) from error
    prefix = evidence_path(document, path.parent, "").stem
    if not path.stem.startswith(prefix) or path.stem == prefix:
        raise VaExportError(
            f"the file of {document['device']['name']!r} is named {path.name}",
            where=path,
            fix=f"name it {prefix}<topic>.json",
        )
    return document


def check_evidence(document: Any) -> None:
    """Raise VaExportError, with the place, unless the document has the form above.

    Beside keys and types: numbers are finite, medians lie within their ranges, `passed` agrees with the numbers
    beside it, names are not used twice, every peer's name says which kind it is.
    """
    _keys(document, "document", _DOCUMENT, _OPTIONAL["document"])
    _check_device(document["device"])
    if not isinstance(document["commit"], str) or not re.fullmatch(r"[0-9a-f]{40}(-dirty)?", document["commit"]):
        _refuse("commit", f"is {document['commit']!r}", "40 hexadecimal digits, with -dirty where the tree was changed")
    _check_date(document["date"])
    _keys(document["ceilings"], "ceilings", _CEILINGS, set())
    for name, value in document["ceilings"].items():
        _number(value, f"ceilings.{name}", least=0.0, nullable=True)
    for kind, check in (("checks", _check_check), ("timings", _check_timing), ("targets", _check_target)):
        rows = document.get(kind, [])
        if not isinstance(rows, list):
            _refuse(kind, f"is a {type(rows).__name__}", "a list of rows")
        for index, row in enumerate(rows):
            check(row, f"{kind}[{index}]")
    for kind in ("checks", "targets"):
        names = [(row["name"], row.get("variant")) for row in document.get(kind, [])]
        twice = sorted({name for name, variant in names if names.count((name, variant)) > 1})
        if twice:
            _refuse(kind, f"has {twice[0]!r} more than once", "a name of its own for every row")


def _check_device(device: Any) -> None:
    _keys(device, "device", _DEVICE, None)
    _text(device["name"], "device.name")
    for key in sorted(_DEVICE - {"name"}):
        if device[key] is not None:
            _text(device[key], f"device.{key}")


def _check_date(value: Any) -> None:
    try:
        date.fromisoformat(value)
    except (TypeError, ValueError):
        _refuse("date", f"is {value!r}", "a date such as 2026-01-31")


def _check_check(row: Any, where: str) -> None:
    _keys(row, where, _CHECK, _OPTIONAL["check"])
    _text(row["name"], f"{where}.name")
    _passed(row, where)
    for key in ("dtype", "message", "variant"):
        if row.get(key) is not None:
            _text(row[key], f"{where}.{key}")
    if row["shape"] is not None:
        _shape(row["shape"], f"{where}.shape", None)
    for key in ("max_rel_err", "tolerance"):
        _number(row[key], f"{where}.{key}", least=0.0, nullable=True)
    if row["max_rel_err"] is not None and row["tolerance"] is None:
        _refuse(f"{where}.tolerance", "is null beside an error", "the number that the error is held to")
    measured = row["max_rel_err"] is not None
    if row["passed"] and measured and row["max_rel_err"] > row["tolerance"]:
        _refuse(f"{where}.passed", f"is true with an error of {row['max_rel_err']}", f"at most {row['tolerance']}")
    if row["passed"] and row["tolerance"] is not None and not measured:
        _refuse(f"{where}.passed", "is true, and the tolerance stands beside no error", "the error that was found")


def _check_timing(row: Any, where: str) -> None:
    _keys(row, where, _TIMING, _OPTIONAL["timing"])
    _text(row["op"], f"{where}.op")
    _text(row["dtype"], f"{where}.dtype")
    if row.get("variant") is not None:
        _text(row["variant"], f"{where}.variant")
    families = [keys for op, keys in _SHAPE_OF_OP.items() if row["op"].startswith(op)]
    _shape(row["shape"], f"{where}.shape", families[0] if families else None)
    _number(row["ours_us"], f"{where}.ours_us", least=0.0, nullable=True)
    _range(row["ours_range_us"], row["ours_us"], f"{where}.ours_range_us")
    peers, ranges, notes = row["peers_us"], row.get("peers_range_us", {}), row.get("notes", {})
    for key, table in (("peers_us", peers), ("peers_range_us", ranges), ("notes", notes)):
        if not isinstance(table, dict):
            _refuse(f"{where}.{key}", f"is a {type(table).__name__}", "a table by name")
    for name, median in peers.items():
        if not name.endswith(("_plain", "_bias")):
            _refuse(f"{where}.peers_us", f"has {name!r}", "names that end in _plain (no anchors) or _bias (our result)")
        _number(median, f"{where}.peers_us.{name}", least=0.0, nullable=True)
        if median is None and name not in notes:
            _refuse(f"{where}.peers_us.{name}", "is null without a reason", f"the reason under notes.{name}")
        if name in ranges:
            _range(ranges[name], median, f"{where}.peers_range_us.{name}")
    if row["ours_us"] is None and "ours" not in notes:
        _refuse(f"{where}.ours_us", "is null without a reason", "the reason under notes.ours")
    strangers = (set(ranges) - set(peers)) | (set(notes) - set(peers) - {"ours"})
    if strangers:
        _refuse(where, f"speaks of {sorted(strangers)}", "peers that peers_us has")
    for name, note in notes.items():
        _text(note, f"{where}.notes.{name}")
    for key in ("ours_tflops", "ours_tb_per_s", "repeats", "ours_peak_bytes"):
        if key in row:
            _number(row[key], f"{where}.{key}", least=0.0, nullable=True)
    peaks = row.get("peers_peak_bytes", {})
    if not isinstance(peaks, dict) or not set(peaks) <= set(peers):
        _refuse(f"{where}.peers_peak_bytes", f"is {peaks!r}", "bytes of peers that peers_us has")
    for name, peak in peaks.items():
        _number(peak, f"{where}.peers_peak_bytes.{name}", least=0.0)


def _check_target(row: Any, where: str) -> None:
    _keys(row, where, _TARGET, _OPTIONAL["target"])
    for key in ("name", "unit"):
        _text(row[key], f"{where}.{key}")
    if row["relation"] not in _RELATIONS:
        _refuse(f"{where}.relation", f"is {row['relation']!r}", f"one of {', '.join(_RELATIONS)}")
    _number(row["measured"], f"{where}.measured", nullable=True)
    _number(row["bound"], f"{where}.bound")
    _passed(row, where)
    met = row["measured"] is not None and _RELATIONS[row["relation"]](row["measured"], row["bound"])
    if row["passed"] != met:
        _refuse(f"{where}.passed", f"is {row['passed']}", f"what {row['measured']} {row['relation']} {row['bound']} is")


def _refuse(where: str, what: str, expected: str) -> None:
    raise VaExportError(f"{where} {what}, expected {expected}", where=where, fix="write evidence with write_evidence")


def _keys(value: Any, where: str, required: set[str], optional: set[str] | None) -> None:
    """`optional` None lets any further key stand."""
    if not isinstance(value, dict):
        _refuse(where, f"is a {type(value).__name__}", f"an object with {', '.join(sorted(required))}")
    missing = sorted(required - set(value))
    if missing:
        _refuse(where, f"lacks {', '.join(missing)}", f"all of {', '.join(sorted(required))}")
    unknown = [] if optional is None else sorted(set(value) - required - optional)
    if unknown:
        _refuse(
            where, f"has the unknown {', '.join(unknown)}", f"only {', '.join(sorted(required | (optional or set())))}"
        )


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        _refuse(where, f"is {value!r}", "a text")


def _passed(row: Row, where: str) -> None:
    if not isinstance(row["passed"], bool):
        _refuse(f"{where}.passed", f"is {row['passed']!r}", "true or false")


def _number(value: Any, where: str, *, least: float | None = None, nullable: bool = False) -> None:
    if value is None and nullable:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (least is not None and value < least):
        _refuse(where, f"is {value!r}", "a finite number" + ("" if least is None else f" of at least {least:g}"))


def _range(value: Any, median: float | None, where: str) -> None:
    """[min, max] around the median; null where there is no median."""
    if median is None:
        if value is not None:
            _refuse(where, f"is {value!r} beside no median", "null")
        return
    if not isinstance(value, list) or len(value) != 2:
        _refuse(where, f"is {value!r}", "[min, max]")
    for end in value:
        _number(end, where, least=0.0)
    if not value[0] <= median <= value[1]:
        _refuse(where, f"{value} does not hold the median {median}", "min ≤ median ≤ max")


def _shape(value: Any, where: str, keys: set[str] | None) -> None:
    if keys is not None:
        _keys(value, where, keys, {"value_head_dim", "kv_length"})
    if not isinstance(value, dict) or not value:
        _refuse(where, f"is {value!r}", "an object of sizes")
    for name, size in value.items():
        sizes = size if isinstance(size, list) else [size]
        if not all(entry is None or isinstance(entry, int | str | bool) for entry in sizes):
            _refuse(f"{where}.{name}", f"is {size!r}", "whole numbers, truth values or names")
