"""README's section on performance, from evidence files alone.

Every figure is read from a document of `engines/evidence/`; a row that no document holds says so, with the command that
measures it. The chart is Mermaid's xychart, which GitHub draws, so that it is text that a test can compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from va_export.evidence.document import Document, read_evidence

BEGIN = "<!-- performance: written by scripts/readme_tables.py from engines/evidence, not by hand -->"
END = "<!-- performance: end -->"
NOT_MEASURED = "not yet measured"

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One table of README.

    Attributes:
        title: the heading.
        about: one line: what was measured, how to read it.
        columns: the header after the device's column.
        wanted: the cases, each a label and the test that a timing row must pass.
        cells: the cells of one timing row, one for each column after the first.
        command: what measures the missing rows.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    wanted: tuple[tuple[str, Callable[[Row], bool]], ...]
    cells: Callable[[Row], Sequence[str]]
    command: str


def read_folder(folder: Path) -> list[Document]:
    """Every evidence file of a folder, in the order of their names.

    Raises:
        VaExportError: a file of another form.
    """
    return [read_evidence(path) for path in sorted(folder.glob("*.json"))]


def performance_section(documents: Iterable[Document]) -> str:
    """The section between `BEGIN` and `END`, both included."""
    known = list(documents)
    parts = [BEGIN, "", *(_table(table, known) for table in TABLES)]
    chart = _chart(known)
    return "\n".join([*parts, *([chart] if chart else []), END])


def replace_section(text: str, section: str) -> str:
    """README with its section replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the document must hold {BEGIN!r} and {END!r} once each")
    return text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :]


def _timings(documents: Iterable[Document]) -> list[tuple[Document, Row]]:
    return [(document, row) for document in documents for row in document["timings"]]


def _table(table: Table, documents: Sequence[Document]) -> str:
    header = ["device", *table.columns]
    lines = [f"**{table.title}.** {table.about}", "", _line(header), _line(["---"] * len(header))]
    missing = []
    for label, matches in table.wanted:
        found = [(document, row) for document, row in _timings(documents) if matches(row)]
        if not found:
            missing.append(label)
        for document, row in found:
            lines.append(_line([_device(document), label, *table.cells(row)]))
    if missing:
        blanks = [""] * (len(table.columns) - 2)
        lines.append(_line(["any", "; ".join(missing), f"{NOT_MEASURED}: `{table.command}`", *blanks]))
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _device(document: Document) -> str:
    return str(document["device"]["name"])


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return "–"
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{_digits(microseconds / size)} {unit}"
    return f"{_digits(microseconds)} µs"


def _digits(number: float) -> str:
    """Three, or all before the point."""
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def _best(row: Row, kind: str) -> float | None:
    """The fastest peer of a kind, `_plain` or `_bias`."""
    return min(
        (time for name, time in row["peers_us"].items() if name.endswith(kind) and time is not None), default=None
    )


def _with_ratio(peer: float | None, ours: float | None) -> str:
    """A peer's time, and how many times ours it is."""
    if peer is None or not ours:
        return _time(peer)
    return f"{_time(peer)} ({peer / ours:.2f}×)"


def _attention_cells(row: Row) -> Sequence[str]:
    ours = row["ours_us"]
    return [_time(ours), _with_ratio(_best(row, "_plain"), ours), _with_ratio(_best(row, "_bias"), ours)]


def _question_cells(row: Row) -> Sequence[str]:
    ours, official = row["ours_us"], row["peers_us"].get("official_eager_bias")
    note = row.get("notes", {}).get("official_eager_bias", "")
    stated = f"did not run: {note}" if official is None else _with_ratio(official, ours)
    return [_time(ours), _with_ratio(_best(row, "_plain"), ours), stated]


def _score_cells(row: Row) -> Sequence[str]:
    textbook = next((time for name, time in row["peers_us"].items() if name.startswith("textbook")), None)
    return [_time(row["ours_us"]), _with_ratio(textbook, row["ours_us"])]


def _attention_case(op: str, kv_len: int) -> Callable[[Row], bool]:
    wanted = {"batch": 1, "query_heads": 32, "kv_heads": 8, "head_dim": 128, "kv_len": kv_len}

    def matches(row: Row) -> bool:
        return row["op"] == op and row["dtype"] == "float16" and _has(row["shape"], wanted)

    return matches


def _question_case(frames: int) -> Callable[[Row], bool]:
    return lambda row: row["op"] == "video_question_total" and row["shape"].get("frames") == frames


def _score_case(**sizes: int) -> Callable[[Row], bool]:
    def matches(row: Row) -> bool:
        return row["op"].startswith("subspace_score") and row["dtype"] != "float64" and _has(row["shape"], sizes)

    return matches


def _has(shape: Mapping[str, Any], wanted: Mapping[str, int]) -> bool:
    return all(shape.get(name) == size for name, size in wanted.items())


TABLES = (
    Table(
        "A question about a video",
        "Frames to the 32nd token, an 8B model, float16, batch 1, in PyTorch; × is the peer's time over ours.",
        ("frames", "ours", "without anchors", "the official way"),
        tuple((str(frames), _question_case(frames)) for frames in (8, 16, 32, 64)),
        _question_cells,
        ".venv/bin/python scripts/gpu_end_to_end.py",
    ),
    Table(
        "AnchoredAttention, prefill",
        "Causal, head_dim 128, 32/8 heads, float16; the fastest plain attention is the ceiling.",
        ("keys", "ours", "best plain", "best with a bias"),
        tuple((f"{n // 1024}k", _attention_case("anchored_attention_prefill", n)) for n in (2048, 4096, 8192, 16384)),
        _attention_cells,
        ".venv/bin/python scripts/gpu_check.py",
    ),
    Table(
        "AnchoredAttention, decode",
        "One query, head_dim 128, 32/8 heads, float16, batch 1.",
        ("keys", "ours", "best plain", "best with a bias"),
        tuple((f"{n // 1024}k", _attention_case("anchored_attention_decode", n)) for n in (4096, 16384)),
        _attention_cells,
        ".venv/bin/python scripts/gpu_check.py",
    ),
    Table(
        "SubspaceScore",
        "Tokens to scores, float32; the peer is the paper's solver, a dense float64 solve an iteration, extrapolated"
        " from a few. On a CPU, ours is the compiled solver and the peer NumPy.",
        ("case", "ours", "the paper's solver"),
        (
            ("1024 tokens, PCA to 64", _score_case(tokens=1024, pca_rank=64)),
            ("2048 tokens, PCA to 64", _score_case(tokens=2048, pca_rank=64)),
            ("2048 tokens of 4096, no PCA", _score_case(tokens=2048, dim=4096, pca_rank=0)),
            ("16384 tokens, PCA to 64", _score_case(tokens=16384, pca_rank=64)),
        ),
        _score_cells,
        ".venv/bin/python scripts/gpu_score.py",
    ),
)


def _chart(documents: Sequence[Document]) -> str:
    """Ours, plain and official over the number of frames, for the first GPU that has the whole question."""
    rows: dict[str, dict[int, Row]] = {}
    for document, row in _timings(documents):
        if row["op"] == "video_question_total" and row["ours_us"] is not None:
            rows.setdefault(_device(document), {})[row["shape"]["frames"]] = row
    if not rows:
        return ""
    device, by_frames = next(iter(sorted(rows.items())))
    frames = sorted(by_frames)
    lines = [
        f"Seconds a question on {device} (bars: ours; line: without anchors):",
        "",
        "```mermaid",
        "xychart-beta",
        f"    x-axis frames {[str(count) for count in frames]}".replace("'", '"'),
        '    y-axis "seconds"',
        f"    bar {[round(by_frames[count]['ours_us'] / 1e6, 3) for count in frames]}",
    ]
    plain = [_best(by_frames[count], "_plain") for count in frames]
    if all(time is not None for time in plain):
        lines.append(f"    line {[round(time / 1e6, 3) for time in plain if time is not None]}")
    return "\n".join([*lines, "```", ""])
