"""The form of an evidence file, and the only way to write one.

    {"device":   {"name", "driver", "cuda", "torch", ...},
     "commit", "date",
     "ceilings": {"matmul_bf16_tflops", "copy_tb_per_s"},
     "checks":   [{"name", "shape", "dtype", "max_rel_err", "tolerance", "passed"}],
     "timings":  [{"op", "shape", "dtype", "ours_us", "ours_range_us": [min, max], "peers_us": {name: median}}],
     "targets":  [{"name", "measured", "relation", "bound", "unit", "passed"}]}

Times are medians in microseconds. A peer's name ends in `_plain` (without anchors: a ceiling) or `_bias` (the same
result as ours). null stands for what could not be had: a check that compares no numbers has neither error nor
tolerance, a peer that refused a shape has no time and says why in `notes`. Rows may carry the further keys that the
classes below give a default; unknown keys are refused, so that a misspelt one cannot pass for a missing one. In code a
document and its rows are plain data.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from va_export.documents import Form, decode, parse, read_bytes
from va_export.errors import VaExportError

Row = dict[str, Any]
Document = dict[str, Any]

ATTENTION_SHAPE = {"batch", "query_heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"}
SCORE_SHAPE = {"tokens", "dim", "pca_rank", "iterations"}
_SHAPE_OF_OP = {"anchored_attention": ATTENTION_SHAPE, "subspace_score": SCORE_SHAPE}
_OPTIONAL_SIZES = {"value_head_dim", "kv_length"}
_RELATIONS = {">=": lambda measured, bound: measured >= bound, "<=": lambda measured, bound: measured <= bound}
_FIX = "write evidence with write_evidence"

Text = Annotated[str, Meta(pattern=r"\S")]
Positive = Annotated[float, Meta(ge=0.0)]
Range = tuple[Positive, Positive]
Size = int | str | bool | None
Shape = Annotated[dict[str, Size | list[Size]], Meta(min_length=1)]


class Device(Form, frozen=True, forbid_unknown_fields=False):
    """Where it was measured; what else is known of the machine stands beside it."""

    name: Text
    driver: Text | None
    cuda: Text | None
    torch: Text | None


class Ceilings(Form, frozen=True):
    """What the machine reaches at best."""

    matmul_bf16_tflops: Positive | None
    copy_tb_per_s: Positive | None


class Check(Form, frozen=True):
    """A row of `checks`; `variant`: which of several kernels or settings."""

    name: Text
    shape: Shape | None
    dtype: Text | None
    max_rel_err: Positive | None
    tolerance: Positive | None
    passed: bool
    message: Text | None = None
    variant: Text | None = None

    def __post_init__(self) -> None:
        if self.max_rel_err is not None and self.tolerance is None:
            raise ValueError("an error stands beside no tolerance that it is held to")
        if self.passed and self.tolerance is not None and self.max_rel_err is None:
            raise ValueError("passed is true, and the tolerance stands beside no error")
        if self.passed and self.max_rel_err is not None and not self.max_rel_err <= (self.tolerance or 0.0):
            raise ValueError(f"passed is true with an error of {self.max_rel_err}, above {self.tolerance}")


class Timing(Form, frozen=True):
    """A row of `timings`; peak bytes are of device memory, weights included."""

    op: Text
    shape: Shape
    dtype: Text
    ours_us: Positive | None
    ours_range_us: Range | None
    peers_us: dict[str, Positive | None]
    variant: Text | None = None
    peers_range_us: dict[str, Range | None] = field(default_factory=dict)
    notes: dict[str, Text] = field(default_factory=dict)
    ours_tflops: Positive | None = None
    ours_tb_per_s: Positive | None = None
    repeats: Positive | None = None
    ours_peak_bytes: Positive | None = None
    peers_peak_bytes: dict[str, Positive] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op, keys in _SHAPE_OF_OP.items():
            if self.op.startswith(op) and not keys <= set(self.shape) <= keys | _OPTIONAL_SIZES:
                raise ValueError(f"shape has {sorted(self.shape)}, expected {sorted(keys)}")
        if odd := [name for name in self.peers_us if not name.endswith(("_plain", "_bias"))]:
            raise ValueError(f"peers_us has {odd[0]!r}: names end in _plain (no anchors) or _bias (our result)")
        peers = set(self.peers_us)
        if strangers := ({*self.peers_range_us, *self.peers_peak_bytes} | set(self.notes) - {"ours"}) - peers:
            raise ValueError(f"it speaks of {sorted(strangers)}, which peers_us has not")
        _check_range("ours", self.ours_us, self.ours_range_us)
        for name, found in self.peers_range_us.items():
            _check_range(name, self.peers_us[name], found)
        for name, median in {"ours": self.ours_us, **self.peers_us}.items():
            if median is None and name not in self.notes:
                raise ValueError(f"the time of {name} is null without a reason under notes.{name}")


class Target(Form, frozen=True):
    """A row of `targets`."""

    name: Text
    measured: float | None
    relation: Literal[">=", "<="]
    bound: float
    unit: Text
    passed: bool
    message: Text | None = None

    def __post_init__(self) -> None:
        if self.passed != (self.measured is not None and _RELATIONS[self.relation](self.measured, self.bound)):
            raise ValueError(f"passed is {self.passed}, with {self.measured} {self.relation} {self.bound}")


class Evidence(Form, frozen=True):
    """The form of a whole file."""

    device: Device
    commit: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}(-dirty)?\Z")]
    date: date
    ceilings: Ceilings
    checks: list[Check]
    timings: list[Timing]
    targets: list[Target] = field(default_factory=list)

    def __post_init__(self) -> None:
        checks = Counter((row.name, row.variant) for row in self.checks)
        targets = Counter((row.name, "") for row in self.targets)
        for kind, counts in (("checks", checks), ("targets", targets)):
            if twice := [name for (name, _), count in counts.items() if count > 1]:
                raise ValueError(f"{kind} has {twice[0]!r} more than once")


def _check_range(name: str, median: float | None, found: Range | None) -> None:
    if (found is None) != (median is None) or (found and median is not None and not found[0] <= median <= found[1]):
        raise ValueError(f"the range of {name}, {found}, does not hold the median {median}")


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
    content = read_bytes(path, what="the evidence", fix="run the script that wrote it again")
    decode(content, Evidence, what="the evidence", where=path, fix=_FIX)
    document: Document = parse(content, what="the evidence", where=path, fix=_FIX)
    prefix = evidence_path(document, path.parent, "").stem
    if not path.stem.startswith(prefix) or path.stem == prefix:
        raise VaExportError(
            f"the file of {document['device']['name']!r} is named {path.name}",
            where=path,
            fix=f"name it {prefix}<topic>.json",
        )
    return document


def check_evidence(document: Document) -> None:
    """Raise VaExportError, with the place, unless the document, once written, has the form above.

    Beside keys and types: numbers are finite, medians lie within their ranges, `passed` agrees with the numbers
    beside it, names are not used twice, every peer's name says which kind it is.
    """
    decode(json.dumps(document).encode(), Evidence, what="the evidence", where="evidence", fix=_FIX)
