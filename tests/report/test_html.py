"""The page, read back with Python's own HTML parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from html_tree import Element, parse
from refusals import refused
from synthetic_bundle import GRID, HOSTILE, N_FRAMES, SIDE, check, latency, manifest, parity, reference, write_bundle

from va_export.bundle.document import FileEntry, ManifestDocument
from va_export.errors import VaExportError
from va_export.report.html import render_report


def render(directory: Path, document: ManifestDocument | None = None) -> Path:
    return render_report(directory, document or manifest())


def page(directory: Path, document: ManifestDocument | None = None, **parts: Any) -> Element:
    return parse(render(write_bundle(directory, **parts), document))


def by_id(root: Element, tag: str, name: str) -> Element:
    return root.one(tag, id=name)


def test_the_page_is_written_into_the_bundle_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = render(write_bundle(tmp_path))
    assert path == tmp_path / "report.html"
    assert {file.name for file in tmp_path.iterdir()} == {
        "parity.json", "latency.json", "reference.npz", "report.html",
    }  # fmt: skip


def test_rendering_again_replaces_the_page_in_one_step(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "held").hardlink_to(tmp_path / "report.html")
    assert by_id(parse(render(tmp_path)), "div", "verdict")
    assert (tmp_path / "held").read_text() == "old"  # a reader who has the old page open keeps it whole


def test_a_good_bundle_passes_in_words_with_its_reason(tmp_path: Path) -> None:
    root = page(tmp_path)
    verdict = by_id(root, "div", "verdict").text
    assert verdict.startswith("✓ PASS")
    assert "12 of 12 checks within tolerance; worst: prefill_logits" in verdict
    assert "31 % of its tolerance" in verdict
    header = root.one("header").text
    assert root.one("h1").text == "InternVL2-8B"
    assert "fp16" in header
    assert "no NVIDIA driver on this machine" in by_id(root, "ul", "not-run").text
    assert by_id(root, "ul", "not-run").one("code").text == "va-check BUNDLE --backend tensorrt-rtx"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tolerance_used": 2.4}, "240 % of its tolerance"),
        ({"cosine": 0.98}, "cosine 0.98, below 0.999"),
        ({"nan": 5, "tolerance_used": None, "max_abs": None}, "5 NaN and 0 infinite values"),
    ],
)
def test_one_failed_check_fails_the_page_and_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    data = parity()
    data["passed"] = data["runs"][1]["passed"] = False
    failing = {**check("decode_logits", True, 0.2), "passed": False, **changes}
    data["runs"][1]["checks"] = [failing, check("prefill_logits", True, 0.9)]
    root = page(tmp_path, parity=data)
    verdict = by_id(root, "div", "verdict").text
    assert verdict.startswith("✗ FAIL")
    assert "7 of 8 checks" in verdict
    assert "worst: decode_logits (onnxruntime, native attention)" in verdict
    assert reason in verdict
    failed = root.one("tr", class_="failed")
    assert "✗ FAIL" in failed.text
    assert reason in failed.text


def test_a_claimed_pass_does_not_cover_a_failed_check(tmp_path: Path) -> None:
    data = parity()
    data["runs"][0]["checks"][0]["passed"] = False  # "passed" of run and file still say true
    assert by_id(page(tmp_path, parity=data), "div", "verdict").text.startswith("✗ FAIL")


def test_a_recorded_failure_is_not_covered_by_passing_checks(tmp_path: Path) -> None:
    verdict = by_id(page(tmp_path, parity={**parity(), "passed": False}), "div", "verdict").text
    assert verdict.startswith("✗ FAIL")
    assert "parity.json records a failure" in verdict


@pytest.mark.parametrize("data", [None, {**parity(), "runs": []}])
def test_nothing_passes_without_a_check(tmp_path: Path, data: dict[str, Any] | None) -> None:
    root = page(tmp_path, parity=data)
    assert "NOT CHECKED" in by_id(root, "div", "verdict").text
    assert "NOT CHECKED" in root.one("title").text


def test_each_run_has_its_table_of_checks(tmp_path: Path) -> None:
    tables = page(tmp_path).all("table", class_="checks")
    assert len(tables) == 2
    rows = tables[0].rows()
    assert len(rows) == 1 + 6
    prefill = next(row for row in rows if row[0].startswith("prefill_logits") and row[1] == "on")
    assert prefill[2] == "✓ pass"
    assert prefill[3] == "31 % 0.01 + 0.01·|ref|"
    assert prefill[4] == "0.0031 3.1e-04"
    assert prefill[6] == "0.9999981 0.999"
    assert prefill[7:9] == ["0 / 0", "100 %"]
    score = next(row for row in rows if row[0].startswith("sharing_score"))
    assert score[1] == "–"
    assert score[3] == "– cosine only"


def test_differing_greedy_tokens_are_marked_in_text(tmp_path: Path) -> None:
    data = parity()
    data["runs"] = data["runs"][:1]
    data["runs"][0]["greedy"] = [
        {"anchors": True, "reference": [5, 6, 7, 8], "bundle": [5, 6, 9], "matching_prefix": 2},
        {"anchors": False, "reference": [5, 6], "bundle": [5, 6], "matching_prefix": 2},
        {"anchors": False, "reference": [5], "bundle": [5, 0], "matching_prefix": 1},
    ]
    root = page(tmp_path, parity=data)
    differing, equal, longer = root.all("table", class_="tokens")
    assert differing.rows() == [
        ["Step", "1", "2", "3", "4"],
        ["Reference", "5", "6", "7", "8"],
        ["Bundle", "5", "6", "≠ 9", "≠ –"],
    ]
    assert len(differing.all("td", class_="differs")) == 2
    assert equal.all("td", class_="differs") == []
    assert longer.rows()[1:] == [["Reference", "5", "–"], ["Bundle", "5", "≠ 0"]]
    text = by_id(root, "section", "parity").text
    assert "equal up to step 2 of 4" in text
    assert "anchors off: all 2 equal" in text
    # what differs is open to the eye, what is equal is folded away
    shown = ["open" in fold.attributes for fold in by_id(root, "section", "parity").all("details")]
    assert shown == [True, False, True]


def test_host_times_are_called_host_cpu_times(tmp_path: Path) -> None:
    section = by_id(page(tmp_path), "section", "latency")
    assert "Host CPU times" in section.one("p", class_="notice").text
    assert "Example CPU 3000" in section.text
    assert "anchors cost +13 % end to end" in section.text
    rows = section.one("table", class_="times").rows()
    assert rows[0][0] == "Stage (host CPU time)"
    assert ["End to end", "on", "1130 ms", "1186 ms", "1356 ms", "3.4 %", "10"] in rows
    assert ["End to end", "off", "1000 ms", "1050 ms", "1200 ms", "3.4 %", "10"] in rows
    assert [row[1] for row in rows if row[0] == "Sharing score"] == ["on"]
    assert [row[0] for row in rows[1:3]] == ["Preprocess frames"] * 2


def test_device_times_are_not_called_host_times(tmp_path: Path) -> None:
    data = latency()
    for run in data["runs"]:
        run.update(backend="tensorrt-rtx", device="NVIDIA L4")
    data["environment"]["gpu"] = "NVIDIA L4"
    root = page(tmp_path, latency=data)
    section = by_id(root, "section", "latency")
    assert "host CPU" not in section.text
    assert "Host CPU" not in section.text
    assert "tensorrt-rtx on NVIDIA L4" in section.text


def test_bars_are_as_long_as_their_medians_and_whiskers_reach_the_95th_percentile(tmp_path: Path) -> None:
    chart = by_id(page(tmp_path), "section", "latency").one("svg", class_="bars")
    anchored = [float(bar.attributes["width"].rstrip("%")) for bar in chart.all("rect", class_="on")]
    plain = [float(bar.attributes["width"].rstrip("%")) for bar in chart.all("rect", class_="off")]
    assert len(anchored) == 6
    assert len(plain) == 5  # no score without anchors
    np.testing.assert_allclose(anchored[-1] / plain[-1], 1.13, rtol=1e-3)
    np.testing.assert_allclose(anchored[0] / anchored[-1], 12 / 1130, rtol=2e-2)
    ends = [float(line.attributes["x2"].rstrip("%")) for line in chart.all("line", class_="whisker")]
    np.testing.assert_allclose(max(ends) / max(anchored), 1.08, rtol=1e-3)
    assert max(ends) < 70
    assert chart.attributes["aria-label"]


def test_a_bundle_without_latency_says_so(tmp_path: Path) -> None:
    root = page(tmp_path, latency=None)
    assert "Not measured." in by_id(root, "section", "latency").text
    assert root.all("svg", class_="bars") == []
    assert by_id(root, "div", "verdict").text.startswith("✓ PASS")


def test_every_frame_is_shown_twice_with_words_for_it(tmp_path: Path) -> None:
    score = np.zeros(N_FRAMES * GRID * GRID, dtype=np.float32)
    score[GRID * GRID + 2 * GRID + 3] = 0.75
    section = by_id(page(tmp_path, reference={**reference(), "sharing_score": score}), "section", "frames")
    images = section.all("img")
    assert len(images) == 2 * N_FRAMES
    assert all(image.attributes["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert "Frame 2 (video frame 46)" in images[1].attributes["alt"]
    assert "highest 0.75 in row 3, column 4" in images[1].attributes["alt"]
    legend = section.one("ul", class_="legend").all("li")
    assert len(legend) == 5
    assert sum(int(re.search(r"(\d+) tokens", entry.text)[1]) for entry in legend) == len(score)  # type: ignore[index]
    assert "at score 1 its key counts 10.5 times and its value 3.5 times" in section.text
    assert section.one("svg", class_="spread").attributes["aria-label"].startswith("Colour bar")


def test_without_labels_only_the_scores_are_shown(tmp_path: Path) -> None:
    arrays = reference()
    del arrays["labels"]
    section = by_id(page(tmp_path, reference=arrays), "section", "frames")
    assert len(section.all("img")) == N_FRAMES
    assert section.all("ul", class_="legend") == []


def test_scores_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    arrays = reference()
    arrays["sharing_score"][:4] = np.nan
    assert "4 tokens have no finite score" in by_id(page(tmp_path, reference=arrays), "section", "frames").text


def test_without_reference_there_are_no_pictures(tmp_path: Path) -> None:
    root = page(tmp_path, reference=None)
    assert root.all("img") == []
    assert "no pictures" in by_id(root, "section", "frames").text


def test_random_weights_are_said_prominently(tmp_path: Path) -> None:
    random = manifest(model=msgspec.structs.replace(manifest().model, weights="random"))
    assert "Random weights." in page(tmp_path / "random", random).one("header").text
    assert "Random weights." not in page(tmp_path / "trained").one("header").text


def test_contents_list_components_engines_and_files(tmp_path: Path) -> None:
    section = by_id(page(tmp_path), "section", "contents")
    engine = next(row for table in section.all("table") for row in table.rows() if row[1].startswith("tensorrt-rtx"))
    assert engine[:7] == [
        "vision",
        "tensorrt-rtx 1.7.1",
        "engines/vision.engine",
        "sm80, sm89",
        "2",
        "5.0 MiB",
        "12.5 s",
    ]
    assert "pixel_values 1×3×448×448 / 8×3×448×448 / 16×3×448×448" in engine[7]
    files = section.one("table", class_="files").rows()
    assert files[1:] == [["onnx/decoder.onnx", "1.0 MiB", "b2" * 6], ["onnx/vision.onnx", "3.0 MiB", "a1" * 6]]
    assert "32 layers, width 4096, 32 query heads, 8 KV heads" in section.text
    assert "onnx/vision.onnx" in section.text


def test_the_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    path = render(write_bundle(tmp_path))
    root = parse(path)
    policy = next(meta for meta in root.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert root.all("script") == root.all("link") == root.all("iframe") == []
    text = path.read_text(encoding="utf-8")
    addresses = re.findall(r"\b(?:src|href|srcset|action|data)=(\S+)", text) + re.findall(r"url\(([^)]*)", text)
    assert addresses
    assert all(address.startswith(("#", '"data:image/')) for address in addresses)
    assert "@import" not in text


def test_columns_of_every_table_are_named_and_pictures_have_alternatives(tmp_path: Path) -> None:
    root = page(tmp_path)
    for table in root.all("table"):
        head = table.one("thead").all("th")
        assert head
        assert all(cell.attributes["scope"] == "col" for cell in head)
        for row in table.one("tbody").all("tr"):
            assert len([cell for cell in row.children if isinstance(cell, Element)]) == len(head)
    assert all(image.attributes["alt"] for image in root.all("img"))
    for drawing in root.all("svg"):
        assert drawing.attributes.get("aria-label") or drawing.attributes.get("aria-hidden") == "true"
    names = [element.attributes["id"] for tag in ("div", "section", "p", "ul", "pattern", "lineargradient")
             for element in root.all(tag) if "id" in element.attributes]  # fmt: skip
    assert len(names) == len(set(names))


def poison(value: Any) -> Any:
    """The same document with a script in every name and every text."""
    if isinstance(value, dict):
        return {key: poison(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poison(entry) for entry in value]
    return f"{value}{HOSTILE}\"'" if isinstance(value, str) else value


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    document = manifest()
    engine = msgspec.structs.replace(
        document.components["vision"].engines["tensorrt-rtx"], file=HOSTILE, version=HOSTILE
    )
    entry = msgspec.structs.replace(document.components["vision"], onnx=HOSTILE, engines={HOSTILE: engine})
    document = msgspec.structs.replace(
        document,
        model=msgspec.structs.replace(document.model, name=HOSTILE, source=HOSTILE, revision=HOSTILE),
        files={HOSTILE: FileEntry(bytes=1, sha256=HOSTILE)},
        components={HOSTILE: entry},
        video=poison(document.video),
        libraries={HOSTILE: HOSTILE},
    )
    times = poison(latency())
    for run in times["runs"]:
        run["stages"][HOSTILE] = dict(run["stages"]["vision"])
    root = page(tmp_path, document, parity=poison(parity()), latency=times)
    assert root.all("script") == []
    assert HOSTILE in root.one("h1").text
    assert HOSTILE in by_id(root, "section", "latency").one("svg", class_="bars").text
    assert HOSTILE in by_id(root, "section", "parity").text
    assert any(row[0] == HOSTILE for row in root.one("table", class_="files").rows())


def test_a_bundle_with_nothing_optional_still_gives_a_page(tmp_path: Path) -> None:
    bare = manifest(components={}, files={}, video=None, plugin=None, tokenizer=None)
    root = page(tmp_path, bare, parity=None, latency=None, reference=None)
    assert root.one("h1").text == "InternVL2-8B"
    assert "NOT CHECKED" in by_id(root, "div", "verdict").text


@pytest.mark.parametrize(("name", "change", "place"), [
    ("parity", lambda data: data["runs"][0]["checks"][2].pop("passed"), "runs[0].checks[2]"),
    ("parity", lambda data: data["runs"][1]["checks"][0]["tolerance"].update(cosine="0.9"),
     "runs[1].checks[0].tolerance.cosine"),
    ("latency", lambda data: data["runs"][1]["stages"]["prefill"].update(median_ms=None),
     "runs[1].stages.prefill.median_ms"),
    ("latency", lambda data: data["environment"].update(gpus=1), "environment"),
])  # fmt: skip
def test_figures_of_another_form_are_no_page(
    tmp_path: Path, name: str, change: Callable[[Any], Any], place: str
) -> None:
    data = {"parity": parity, "latency": latency}[name]()
    change(data)
    with pytest.raises(VaExportError) as caught:
        page(tmp_path, **{name: data})
    assert caught.value.where == f"{tmp_path / name}.json: {place}"
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("parity.json", "{"), ("latency.json", "[]"), ("reference.npz", "PK damaged")]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    write_bundle(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(VaExportError) as caught:
        render(tmp_path)
    assert caught.value.where == str(tmp_path / name)
    assert not (tmp_path / "report.html").exists()


def test_tokens_that_do_not_fit_the_frames_are_an_error(tmp_path: Path) -> None:
    arrays = reference()
    arrays |= {name: arrays[name][:-1] for name in ("sharing_score", "labels")}
    with refused("reference.npz", len(arrays["sharing_score"])):
        render(write_bundle(tmp_path, reference=arrays))


def test_a_damaged_reference_is_refused(tmp_path: Path) -> None:
    """Deflated data that do not inflate, and arrays of other shapes."""
    directory = write_bundle(tmp_path / "bundle")
    path = directory / "reference.npz"
    np.savez_compressed(path, **{**reference(), "frames": np.zeros((N_FRAMES, SIDE, SIDE, 3), np.uint8)})
    content = bytearray(path.read_bytes())
    start = content.index(b"frames.npy") + 40
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(VaExportError):
        render_report(directory, manifest())
    for name, array in (("frames", np.zeros((N_FRAMES, SIDE, SIDE, 4), np.uint8)), ("labels", np.array(["a"] * 48))):
        np.savez(path, **{**reference(), name: array})
        with pytest.raises(VaExportError) as caught:
            render_report(directory, manifest())
        assert caught.value.where == f"{path}: {name}"
