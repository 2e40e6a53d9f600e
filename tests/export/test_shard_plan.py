"""How many shards: as asked, or as the free memory allows; and what the plan says of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from command_line import TINY, va_export
from refusals import refused

from va_export.bundle.journal import Journal
from va_export.export.plan import Plan, check_plan, describe_plan
from va_export.export.recipe import ExportOptions, resolve_model
from va_export.export.shard_plan import (
    EXPORT_BASE,
    ShardPlan,
    build_memory,
    fitting_shards,
    keep_shards,
    parse_shards,
    plan_shards,
)
from va_export.export.source import open_source
from va_export.export.split_decoder import DecoderWeights, split_decoder
from va_export.progress import StageDisplay

GB = 10**9
INTERNVL2_8B = DecoderWeights(436_224_000, 758_202_368)  # bytes in float16, from its config.json


def planned(deep_checkpoint: Path, **options: object) -> Plan:
    from va_export.pipeline import plan

    recipe = resolve_model(str(deep_checkpoint))
    return plan(ExportOptions(recipe=recipe, output=Path("no-such-bundle"), **options), StageDisplay())  # type: ignore[arg-type]


def test_fewer_shards_need_more_memory() -> None:
    counts = [len(fitting_shards(32, INTERNVL2_8B, gigabytes * GB)) for gigabytes in (64, 40, 24, 16, 8, 5)]
    assert counts[0] == 1 and counts == sorted(counts) and len(set(counts)) >= 5
    for gigabytes, count in zip((64, 40, 24, 16, 8), counts, strict=False):
        shards = fitting_shards(32, INTERNVL2_8B, gigabytes * GB)
        largest = max(map(INTERNVL2_8B.of, shards))
        assert EXPORT_BASE + build_memory(largest) <= gigabytes * GB
        if count > 1:  # one shard less would not have fitted into what auto takes for itself
            fewer = max(map(INTERNVL2_8B.of, split_decoder(32, count - 1, INTERNVL2_8B)))
            assert EXPORT_BASE + build_memory(fewer) > 0.8 * gigabytes * GB
    assert len(fitting_shards(32, INTERNVL2_8B, 1 * GB)) == 32  # nothing fits: as small as can be, and the plan refuses


def test_a_machine_of_24_gb_cuts_an_8b_decoder_into_two() -> None:
    # 14.7 GB of weights: 29.4 GB to build at once; halves of 7.4 GB take 14.8 GB and the base.
    assert [len(shard.layers) for shard in fitting_shards(32, INTERNVL2_8B, 23 * GB)] == [17, 15]


def test_auto_follows_the_memory_and_says_so(deep_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from va_export import pipeline

    monkeypatch.setattr(pipeline, "plan_engines", lambda *_: SimpleNamespace(flavors=("tensorrt-rtx",)))
    plan = planned(deep_checkpoint)
    assert plan.shards.startswith("1 (the largest build needs 1.7 GB, ") and not plan.shards_were_asked
    base = EXPORT_BASE + build_memory(0)
    # The four layers and the head weigh 1.25 MB: memory for the half of what twice that needs.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int((base + 1_300_000) / 0.8)))
    plan = planned(deep_checkpoint)
    assert plan.shards.startswith("3 (")
    names = [file.name for file in plan.files]
    assert [name for name in names if "decoder" in name] == [
        *(f"onnx/decoder_{index}.onnx.data" for index in range(3)),
        *(f"engines/tensorrt-rtx/decoder_{index}.engine" for index in range(3)),
    ]
    sizes = {file.name: file.bytes for file in plan.files}
    text = "\n".join(describe_plan(plan, Path("b")))
    assert "shards        3 (the largest build needs" in text and "onnx/decoder_2.onnx.data" in text
    assert max(sizes, key=lambda name: sizes[name] * name.startswith("onnx/decoder")) == "onnx/decoder_0.onnx.data"


def test_the_build_of_the_largest_shard_is_the_peak(deep_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from va_export import pipeline

    monkeypatch.setattr(pipeline, "plan_engines", lambda *_: SimpleNamespace(flavors=("tensorrt-rtx",)))
    whole, halves = (planned(deep_checkpoint, decoder_shards=count, parity=False) for count in (1, 2))
    assert whole.memory_reason == "building the engine of decoder"
    assert halves.memory_reason in ("building the engine of decoder_0", "building the engine of decoder_1")
    sizes = {file.name: file.bytes for file in halves.files}
    largest = max(sizes["onnx/decoder_0.onnx.data"], sizes["onnx/decoder_1.onnx.data"])
    assert halves.memory == EXPORT_BASE + build_memory(largest) < whole.memory


def test_onnx_alone_needs_no_shards(deep_checkpoint: Path) -> None:
    plan = planned(deep_checkpoint, onnx_only=True)
    assert plan.shards == "1 (no engines are built)"
    assert planned(deep_checkpoint, onnx_only=True, components=("vision",)).shards == ""


def test_a_refusal_suggests_what_is_not_done_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000))
    for asked in (False, True):
        with refused("memory", "5 KB", "a reason", "1 KB") as caught:
            check_plan(Plan((), 5_000, "a reason", "2 (why)", asked), tmp_path / "b")
        assert ("--decoder-shards auto" in str(caught.value.fix)) == asked


def test_the_option_is_auto_or_a_number() -> None:
    assert parse_shards("auto") is None and parse_shards("3") == 3
    for wrong in ("0", "-1", "two", "", "1.5"):
        with refused("--decoder-shards", repr(wrong)):
            parse_shards(wrong)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--decoder-shards", "none"], ["none"]),
        (["--decoder-shards", "3"], [2, 3]),
        (["--decoder-shards", "2", "--components", "vision"], [2, "--components"]),
    ],
)
def test_refusals(arguments: list[str], named: list[object], tmp_path: Path) -> None:
    va_export(*TINY, "-o", tmp_path / "b", "--onnx-only", *arguments).refuses("--decoder-shards", *named)
    assert not list(tmp_path.iterdir())


def test_the_manifest_tells_why(sharded_bundle: Path, tiny_bundle: Path) -> None:
    manifest = json.loads((sharded_bundle / "manifest.json").read_text())
    assert manifest["decoder_shards"] == {"count": 2, "asked": "2", "reason": "as many as were asked for"}
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert manifest["decoder_shards"]["count"] == 1 and manifest["decoder_shards"]["asked"] == "auto"


def test_an_unfinished_run_keeps_its_shards(
    deep_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(recipe=resolve_model(str(deep_checkpoint)), output=tmp_path / "bundle")
    source = open_source(options, tmp_path)
    base = EXPORT_BASE + build_memory(0)
    available = SimpleNamespace(available=int((base + 1_300_000) / 0.8))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)

    def begun() -> ShardPlan:
        planned = plan_shards(options, source, builds_engines=True)
        return keep_shards(planned, source.spec.text.num_layers, Journal(tmp_path / "journal.jsonl"))

    first = begun()
    assert len(first.shards) == 3
    available.available = 64 * GB  # another day
    assert len(plan_shards(options, source, builds_engines=True).shards) == 1
    again = begun()
    assert again.shards == first.shards and again.sizes == first.sizes
    assert again.reason.startswith("as the unfinished run began: ")
