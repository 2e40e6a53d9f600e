"""A bundle that is replaced, removed or edited while it is open never answers with parts of two models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from resealing import reseal

from va_export.bundle.manifest import read_manifest
from va_export.errors import VaExportError
from va_export.progress import StageDisplay
from va_export.proof.run import check_bundle
from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from va_export.runtime.bundle import Bundle

IDS = np.arange(1, 13)


@pytest.fixture(scope="module")
def other_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with all its weights halved: files of the same names and sizes."""
    directory = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("other") / "bundle"))
    weights = list(directory.glob("onnx/*.data"))
    for path in weights:
        (np.fromfile(path, np.float16) / 2).tofile(path)
    reseal(directory, *(f"onnx/{path.name}" for path in weights))
    return directory


def answer(bundle: Bundle) -> list[int]:
    return [int(token) for token in bundle.generate(input_ids=IDS, max_new_tokens=6).tokens]


@pytest.fixture(scope="module")
def answers(tiny_bundle: Path, other_bundle: Path) -> tuple[list[int], list[int]]:
    """Of the tiny bundle and of the other, each by itself."""
    with Bundle.open(tiny_bundle) as first, Bundle.open(other_bundle) as second:
        ours, others = answer(first), answer(second)
        assert answer(first) == ours != others  # two that are open at once keep to themselves
    return ours, others


def rename(bundle: Path, other: Path) -> None:
    bundle.rename(bundle.parent / "old")
    shutil.copytree(other, bundle)


def remove(bundle: Path, other: Path) -> None:
    shutil.rmtree(bundle)


def remove_and_copy(bundle: Path, other: Path) -> None:
    shutil.rmtree(bundle)
    shutil.copytree(other, bundle)


def copy_file_by_file(bundle: Path, other: Path) -> None:
    """As rsync does it: each file under a new name, which then takes the old one's place."""
    for path in sorted(file for file in other.rglob("*") if file.is_file()):
        shutil.copy2(path, bundle / "new")
        (bundle / "new").replace(bundle / path.relative_to(other))


def write_into_the_files(bundle: Path, other: Path) -> None:
    shutil.copytree(other, bundle, dirs_exist_ok=True)


CHANGES = [rename, remove, remove_and_copy, copy_file_by_file, write_into_the_files]


@pytest.mark.parametrize("used_before", [(), ("embedding",), ("embedding", "decoder")])
@pytest.mark.parametrize("change", CHANGES)
def test_the_answer_is_the_old_models_or_none(
    copied_bundle: Path,
    other_bundle: Path,
    answers: tuple[list[int], list[int]],
    change: Callable[[Path, Path], None],
    used_before: tuple[str, ...],
) -> None:
    with Bundle.open(copied_bundle) as bundle:
        if used_before == ("embedding",):
            hidden_size = bundle.manifest.data.model.text.hidden_size
            is_visual = np.zeros((1, len(IDS)), np.bool_)
            visual_tokens = np.zeros((1, hidden_size), np.float32)
            inputs = {"input_ids": IDS[None], "is_visual": is_visual, "visual_tokens": visual_tokens}
            bundle.backend.run("embedding", inputs)
        elif used_before:
            assert answer(bundle) == answers[0]
        change(copied_bundle, other_bundle)
        is_edited = change is write_into_the_files
        if change is rename or (len(used_before) == 2 and not is_edited):
            assert answer(bundle) == answers[0]
        else:
            with pytest.raises(VaExportError) as caught:
                answer(bundle)
            assert str(caught.value.where).startswith(str(copied_bundle))
        if not is_edited:
            assert bundle.default_frames >= 1 and bundle.prompt("What moves?", 2).shape[0] == 1


def test_an_edit_while_it_answers_is_found(copied_bundle: Path) -> None:
    with Bundle.open(copied_bundle) as bundle:
        answer(bundle)
        data = copied_bundle / "onnx" / "decoder.onnx.data"
        with pytest.raises(VaExportError) as caught:
            bundle.generate(input_ids=IDS, max_new_tokens=2, on_token=lambda _: data.write_bytes(data.read_bytes()))
        assert caught.value.where == str(data)


def test_pytorch_reads_the_bundle_that_was_opened(copied_bundle: Path, other_bundle: Path, answers: object) -> None:
    with Bundle.open(copied_bundle, "torch") as bundle:
        before = answer(bundle)
    manifest = read_manifest(copied_bundle)
    rename(copied_bundle, other_bundle)
    with Bundle.open(manifest, "torch") as bundle:
        assert answer(bundle) == before
    shutil.rmtree(copied_bundle.parent / "old")
    with pytest.raises(VaExportError):
        Bundle.open(manifest, "torch")


def test_a_check_compares_one_bundle_with_itself(
    copied_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its steps another bundle takes the place; the reference and the graphs are those of the first."""
    opened = Bundle.open.__func__  # type: ignore[attr-defined]
    replaced: list[Path] = []

    def open_late(cls: type[Bundle], *arguments: object, **options: object) -> Bundle:
        if not replaced:
            rename(copied_bundle, other_bundle)
            replaced.append(copied_bundle)
        bundle: Bundle = opened(cls, *arguments, **options)
        return bundle

    monkeypatch.setattr(Bundle, "open", classmethod(open_late))
    document = check_bundle(copied_bundle, "onnxruntime", StageDisplay(), iterations=0)
    assert document.parity.passed and replaced


def test_a_check_finds_an_edit_while_it_runs(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copied_bundle / "onnx" / "vision.onnx.data"
    run = OnnxRuntimeBackend.run

    def edit_after(backend: OnnxRuntimeBackend, component: str, inputs: dict[str, Any]) -> Any:
        outputs = run(backend, component, inputs)
        if component == "vision":
            data.write_bytes(data.read_bytes())
        return outputs

    monkeypatch.setattr(OnnxRuntimeBackend, "run", edit_after)
    with pytest.raises(VaExportError) as caught:
        check_bundle(copied_bundle, "onnxruntime", StageDisplay(), iterations=0)
    assert caught.value.where == str(data)


def test_external_data_that_the_manifest_does_not_list_are_refused(copied_bundle: Path) -> None:
    path = copied_bundle / "onnx" / "embedding.onnx"
    model = onnx.load(path, load_external_data=False)
    (copied_bundle / "onnx" / "embedding.onnx.data").rename(copied_bundle / "onnx" / "more.data")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "more.data"
    onnx.save(model, path)
    reseal(copied_bundle, "onnx/embedding.onnx", without="onnx/embedding.onnx.data")
    with Bundle.open(copied_bundle) as bundle, pytest.raises(VaExportError) as caught:
        answer(bundle)
    assert caught.value.where == str(copied_bundle / "manifest.json")


def test_a_tokenizer_that_the_manifest_does_not_list_is_not_read(copied_bundle: Path) -> None:
    reseal(copied_bundle, without="tokenizer.json")
    with Bundle.open(copied_bundle) as bundle:
        assert bundle.tokenizer is None
