"""Charts as inline SVG: the latency of each stage, and how the sharing scores are spread.

Horizontal positions are percentages and heights are pixels, so that a chart fits a phone without shrinking its text.
Colours and the hatching of plain bars are the page's CSS; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from va_export.proof.documents import Latency, LatencyRun, StageTimes
from va_export.report import figures
from va_export.report.pictures import HEAT_STOPS

STAGES: Mapping[str, str] = {
    "preprocess": "Preprocess frames",
    "vision": "Vision tower + projector",
    "score": "Sharing score",
    "prefill": "Prefill",
    "decode_per_token": "Decode, per token",
    "end_to_end": "End to end",
}
"""Stages in the order of work, with their names on the page."""

_LONGEST_BAR = 62.0  # percent of the width; the rest is for the figures behind the bars
_BAR, _STAGE_GAP, _LABEL = 16, 14, 20  # pixels


@dataclass(frozen=True)
class LatencyGroup:
    """The runs of one backend, device and form of attention, those without anchors first."""

    backend: str
    device: str
    attention: str
    runs: tuple[LatencyRun, ...]

    @property
    def on_host(self) -> bool:
        """Whether a CPU was timed, not a GPU."""
        return self.device.lower().startswith("cpu")

    @property
    def by_stage(self) -> tuple[tuple[LatencyRun, str, StageTimes], ...]:
        """All times, a stage's without and with anchors side by side, in the order of work."""
        found = [(run, stage, times) for run in self.runs for stage, times in run.stages.items()]
        order = {name: place for place, name in enumerate(in_order(stage for _, stage, _ in found))}
        return tuple(sorted(found, key=lambda entry: order[entry[1]]))

    @property
    def fewest_repeats(self) -> int:
        """The smallest number of timed rounds among the runs."""
        return min(run.iterations for run in self.runs)

    @property
    def anchor_cost(self) -> float | None:
        """What anchors add to the end-to-end median, as a share of the time without; None if either is missing."""
        medians = {run.anchors: run.median_ms("end_to_end") for run in self.runs}
        with_anchors, without = medians.get(True), medians.get(False)
        return with_anchors / without - 1 if with_anchors and without else None


def in_order(stages: Iterable[str]) -> list[str]:
    """The stages, once each, in the order of work, each with its shards' parts behind it; those that this page does not
    know come last."""
    found = list(dict.fromkeys(stages))
    known = [name for stage in STAGES for name in found if name.partition("/")[0] == stage]
    return [*known, *(name for name in found if name not in known)]


def label(stage: str) -> str:
    """A stage's name on the page; of a shard's part in it, as `Prefill, decoder_0`."""
    if is_part(stage):
        whole, _, shard = stage.partition("/")
        return f"{STAGES[whole]}, {shard}"
    return STAGES.get(stage, stage.replace("_", " "))


def is_part(stage: str) -> bool:
    """Whether it is a shard's part in a stage, which the stage's own time includes."""
    whole, slash, _ = stage.partition("/")
    return bool(slash) and whole in STAGES


def group_runs(latency: Latency | None) -> tuple[LatencyGroup, ...]:
    """The runs of latency.json, those of one configuration together, in the file's order."""
    groups: dict[tuple[str, str, str], list[LatencyRun]] = {}
    for run in latency.runs if latency else ():
        groups.setdefault((run.backend, run.device, run.attention), []).append(run)
    return tuple(LatencyGroup(*key, tuple(sorted(runs, key=lambda run: run.anchors))) for key, runs in groups.items())


def longest_ms(groups: Iterable[LatencyGroup]) -> float:
    """The largest median or 95th percentile among the groups: the common scale of their charts."""
    times = [times for group in groups for run in group.runs for times in run.stages.values()]
    return max((max(entry.median_ms, entry.p95_ms) for entry in times), default=0.0)


def latency_chart(group: LatencyGroup, scale_ms: float) -> Markup:
    """Bars of the medians, a pair for each stage (anchors off, on), with a whisker up to the 95th percentile. What
    shards have of a stage is left to the table.

    Args:
        scale_ms: the time that the longest bar stands for.
    """
    parts: list[Markup] = []
    top = 0
    previous = None
    for run, stage, times in group.by_stage:
        if is_part(stage):
            continue
        if stage != previous:
            top += _STAGE_GAP if previous else 0
            parts.append(Markup('<text class="stage" x="0" y="{}">{}</text>').format(top + 14, label(stage)))
            top += _LABEL
            previous = stage
        parts.append(_bar(times, run.anchors, top, scale_ms))
        top += _BAR + 3
    title = f"Latency by stage, {group.backend} on {group.device}, {group.attention} attention"
    return Markup('<svg class="bars" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        f"{title}: medians in milliseconds; the table below holds the figures", top, Markup().join(parts)
    )


def _bar(times: StageTimes, anchors: bool, top: int, scale_ms: float) -> Markup:
    """One bar; which kind it is stands in words behind it, and in its filling (plain or hatched)."""
    median, p95 = times.median_ms, max(times.p95_ms, times.median_ms)
    length, reach = (_LONGEST_BAR * value / scale_ms if scale_ms > 0 else 0.0 for value in (median, p95))
    middle = top + _BAR / 2
    return Markup(
        '<rect class="{kind}" x="0" y="{top}" width="{length:.2f}%" height="{height}"/>'
        '<line class="whisker" x1="{length:.2f}%" x2="{reach:.2f}%" y1="{middle}" y2="{middle}"/>'
        '<line class="whisker" x1="{reach:.2f}%" x2="{reach:.2f}%" y1="{low}" y2="{high}"/>'
        '<text x="{reach:.2f}%" dx="7" y="{baseline}">{text} <tspan class="dim">{word}</tspan></text>'
    ).format(
        kind="on" if anchors else "off",
        top=top,
        height=_BAR,
        length=length,
        reach=reach,
        middle=middle,
        low=middle - 4,
        high=middle + 4,
        baseline=top + 12,
        text=figures.milliseconds(median),
        word="anchors" if anchors else "plain",
    )


def score_spread(score: npt.NDArray[np.generic], bins: int = 25) -> Markup:
    """The heat map's colour bar, 0 to 1, and above it a histogram: how many tokens have which score.

    Args:
        score: (N,) in [0, 1]; values that are not finite are left out.
    """
    values = score.astype(np.float64)
    counts, _ = np.histogram(np.clip(values[np.isfinite(values)], 0, 1), bins=bins, range=(0.0, 1.0))
    tallest = max(int(counts.max()), 1)
    step = 100 / bins
    bars = Markup().join(
        Markup('<rect class="count" x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}"/>').format(
            place * step + 0.2, 44 - 42 * count / tallest, step - 0.4, 42 * count / tallest
        )
        for place, count in enumerate(counts.tolist())
    )
    stops = Markup().join(
        Markup('<stop offset="{:.0f}%" stop-color="rgb({}, {}, {})"/>').format(
            100 * place / (len(HEAT_STOPS) - 1), *stop
        )
        for place, stop in enumerate(HEAT_STOPS)
    )
    return Markup(
        '<svg class="spread" role="img" aria-label="{}" width="100%" height="76">'
        '<defs><linearGradient id="heat">{}</linearGradient></defs>{}'
        '<rect x="0" y="46" width="100%" height="12" fill="url(#heat)"/>'
        '<text x="0" y="73">0</text><text x="50%" y="73" text-anchor="middle">sharing score</text>'
        '<text x="100%" y="73" text-anchor="end">1</text></svg>'
    ).format(_spread_in_words(values), stops, bars)


def _spread_in_words(values: npt.NDArray[np.float64]) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "Colour bar of the sharing score from 0, dark, to 1, pale; no token has a finite score"
    low, middle, high = np.quantile(finite, (0.1, 0.5, 0.9))
    return (
        f"Colour bar of the sharing score from 0, dark, to 1, pale, with a histogram of {finite.size} tokens: "
        f"a tenth lies below {low:.2f}, half below {middle:.2f}, nine tenths below {high:.2f}"
    )
