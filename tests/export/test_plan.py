"""The plan against what an export then writes, and against the machine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from msgspec import structs
from refusals import refused

from va_export.export.plan import Plan, PlannedFile, check_plan, describe_plan, free_disk, human
from va_export.export.plan_time import duration
from va_export.export.recipe import ExportOptions, resolve_model
from va_export.export.shard_plan import plan_shards
from va_export.export.source import Model
from va_export.progress import StageDisplay


def planned(**options: object) -> Plan:
    from va_export.pipeline import plan

    recipe = resolve_model("internvl2-tiny")
    return plan(ExportOptions(recipe=recipe, output=Path("no-such-bundle"), **options), StageDisplay())  # type: ignore[arg-type]


def test_the_weights_are_as_large_as_planned(tiny_bundle: Path, can_build_engines: bool) -> None:
    plan = planned(onnx_only=not can_build_engines)
    sizes = {file.name: file.bytes for file in plan.files}
    for name in ("vision", "embedding", "decoder"):
        written = (tiny_bundle / "onnx" / f"{name}.onnx.data").stat().st_size
        assert abs(written - sizes[f"onnx/{name}.onnx.data"]) <= 0.1 * written, name
    total = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert total <= plan.disk
    assert plan.memory > plan.disk


def test_precision_engines_and_components_count() -> None:
    half, single = planned(onnx_only=True), planned(onnx_only=True, precision="fp32")
    assert single.files[0].bytes == 2 * half.files[0].bytes
    alone = planned(onnx_only=True, components=("vision",))
    assert [file.name for file in alone.files[:-1]] == ["onnx/vision.onnx.data"]
    assert alone.disk < half.disk
    fewer = planned(onnx_only=True, num_decoder_layers=1)
    assert fewer.disk < half.disk


def plan_of(hub_id: str, available: float, **options: object) -> Plan:
    from va_export.export.plan import plan_export
    from va_export.models import family_for, published_config

    config = published_config(hub_id)
    assert config is not None
    family = family_for(config)
    model = Model(family, family.spec_from_config(config))
    given = {"recipe": resolve_model("internvl2-8b"), "output": Path("b"), **options}
    chosen = ExportOptions(**given)  # type: ignore[arg-type]
    flavors = [] if chosen.onnx_only else ["tensorrt-rtx"]
    shards = plan_shards(chosen, model, builds_engines=bool(flavors))
    return plan_export(chosen, model, flavors, shards, int(available))


def test_an_8b_plan_is_of_the_right_size() -> None:
    plan = plan_of("OpenGVLab/InternVL2-8B", 128e9)
    assert 2 * 2 * 8.0e9 < plan.disk < 2 * 2 * 8.2e9  # float16, once as ONNX and once as engines
    # whole in float32 for the reference; in float16 and float32 for ONNX Runtime, which takes more
    assert 4 * 8.0e9 < plan.memory < 6 * 8.2e9 and plan.memory_reason == "running the bundle"


def test_proving_8b_fits_24_gigabytes() -> None:
    """Both halves of the proof stream their weights there: a layer or two in float32 and the vocabulary's matrix."""
    proved = plan_of("OpenGVLab/InternVL2-8B", 23e9, onnx_only=True)
    assert proved.memory < 8e9 and "streamed" in proved.memory_reason
    alone = plan_of("OpenGVLab/InternVL2-8B", 23e9, onnx_only=True, parity=False)
    assert alone.memory < 2e9 and alone.memory_reason == "writing the ONNX weights"


def test_the_proof_streams_only_where_it_must() -> None:
    small = plan_of("OpenGVLab/InternVL2-1B", 23e9)
    assert "streamed" not in small.memory_reason and "mapped" not in small.memory_reason
    scarce = plan_of("OpenGVLab/InternVL2-1B", 4e9)
    assert scarce.memory < small.memory


def test_too_little_disk_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan((PlannedFile("a", 600), PlannedFile("b", 400)), memory=5_000, memory_reason="a reason")
    check_plan(plan, tmp_path / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with refused(tmp_path / "b", "1 KB", "999 B"):
        check_plan(plan, tmp_path / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4_999))
    with refused("memory", "5 KB", "a reason"):
        check_plan(plan, tmp_path / "b")


def test_the_disk_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    free = free_disk(tmp_path / "not" / "yet" / "there")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_description_names_every_file(tmp_path: Path) -> None:
    plan = Plan((PlannedFile("onnx/a.data", 1_500_000), PlannedFile("b", 3_200_000_000)), 1 << 30, "reason")
    text = "\n".join(describe_plan(plan, tmp_path / "b"))
    for words in (str(tmp_path / "b"), "2 MB  onnx/a.data", "3.2 GB  b", "disk          3.2 GB, of", "1.1 GB (reason)"):
        assert words in text, text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (16e9, "16.0 GB"), (2e12, "2000.0 GB")]
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert human(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_grows_with_what_is_asked_for() -> None:
    onnx, proved = planned(onnx_only=True, parity=False), planned(onnx_only=True)
    assert set(onnx.seconds) == {"writing ONNX"} and set(proved.seconds) == {"writing ONNX", "proving"}
    text = "\n".join(describe_plan(proved, Path("b")))
    assert "time          about " in text and "proving" in text


def test_the_plan_knows_how_much_of_a_turned_weight_is_held() -> None:
    """A number of its own, so that --dry-run need not import PyTorch for it."""
    from va_export.export import plan
    from va_export.graph import weight_pieces

    assert (plan._BUFFERS, plan._PIECE) == (weight_pieces.BUFFERS, weight_pieces.PIECE_BYTES)


def test_time_of_a_proof_follows_from_its_questions() -> None:
    """Prompt, tokens, repeats and the number of backends each cost something; 8B's takes hours, not minutes."""

    def proving(**options: object) -> float:
        return plan_of("OpenGVLab/InternVL2-8B", 24e9, onnx_only=True, **options).seconds["proving"]

    whole = proving()
    assert 3600 < whole < 4 * 3600
    assert proving(new_tokens=2) < whole and proving(precision="bf16") < whole
    no_latency, timed_once = proving(latency_iterations=0), proving(latency_iterations=1)
    assert no_latency < timed_once <= whole
    one_frame = structs.replace(resolve_model("internvl2-8b"), frames=1)
    assert proving(recipe=one_frame) < whole / 2


def test_what_an_earlier_run_wrote_need_not_be_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from va_export.pipeline import plan

    left = tmp_path / "b.partial" / "bundle" / "onnx"
    left.mkdir(parents=True)
    (left / "x.onnx.data").write_bytes(bytes(1 << 20))
    options = ExportOptions(recipe=resolve_model("internvl2-tiny"), output=tmp_path / "b", onnx_only=True)
    resumed = plan(options, StageDisplay())
    assert resumed.there == 1 << 20 and "1 MB of them written already" in "\n".join(
        describe_plan(resumed, tmp_path / "b")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=resumed.disk - (1 << 20)))
    check_plan(resumed, tmp_path / "b")
    with refused(tmp_path / "b"):
        check_plan(plan(replace(options, resume=False), StageDisplay()), tmp_path / "b")
