"""Planning needs a hub's configuration, not its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from refusals import refused

from va_export.errors import VaExportError
from va_export.export.recipe import ExportOptions, Recipe
from va_export.export.source import open_model, open_source
from va_export.models import family_named

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "internvl2_tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository; remembers what was left out."""
    asked = []

    def snapshot_download(hub_id, revision, allow_patterns, ignore_patterns):
        asked.append((hub_id, revision, ignore_patterns))
        folder = tmp_path / ("whole" if ignore_patterns is None else "configuration")
        folder.mkdir(exist_ok=True)
        for path in GOLDEN.iterdir():
            if path.name == "config.json" or (path.suffix == ".safetensors" and ignore_patterns is None):
                shutil.copy(path, folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def options(tmp_path, **recipe) -> ExportOptions:
    return ExportOptions(recipe=Recipe(name="model", **recipe), output=tmp_path / "out")


def test_planning_downloads_no_weights(hub, tmp_path):
    model = open_model(options(tmp_path, checkpoint="owner/model", revision="v1"), tmp_path)
    assert hub == [("owner/model", "v1", ["*.safetensors"])]
    source = open_source(options(tmp_path, checkpoint="owner/model", revision="v1"), tmp_path)
    assert hub[1] == ("owner/model", "v1", None)
    assert (model.family, model.spec) == (source.family, source.spec)


def test_planning_checks_a_local_checkpoint(tmp_path):
    local = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, local)
    weights = local / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with refused(weights, weights.stat().st_size):
        open_model(options(tmp_path, checkpoint=str(local)), tmp_path)


def test_what_is_not_followed_is_told_before_the_work(tmp_path):
    local = family_named("internvl2").write_tiny_checkpoint(tmp_path / "checkpoint")
    tokenizer = json.loads((local / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 400, "strategy": "LongestFirst", "stride": 0}
    (local / "tokenizer.json").write_text(json.dumps(tokenizer))
    for opened in (open_source, open_model):
        notes = []
        opened(options(tmp_path, checkpoint=str(local)), tmp_path, notes.append)
        assert len(notes) == 1
        assert "400 tokens" in notes[0]


def test_a_checkpoint_without_a_tokenizer_is_told(tmp_path):
    local = family_named("internvl2").write_tiny_checkpoint(tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (local / name).unlink()
    for weights in ("checkpoint", "random"):
        notes = []
        open_source(options(tmp_path, checkpoint=str(local), weights=weights), tmp_path, notes.append)
        assert len(notes) == 1 and "tokenizer.model" in notes[0]


def test_a_name_that_leads_to_no_file_is_refused_where_weights_are_random_too(tmp_path):
    local = family_named("internvl2").write_tiny_checkpoint(tmp_path / "checkpoint")
    (local / "tokenizer.json").unlink()
    (local / "tokenizer.json").symlink_to("../blobs/0123")
    for weights in ("checkpoint", "random"):
        with refused(local / "tokenizer.json", "../blobs/0123"):
            open_source(options(tmp_path, checkpoint=str(local), weights=weights), tmp_path)


def test_prompts_that_cannot_be_made_are_found_before_the_work(tmp_path):
    local = family_named("internvl2").write_tiny_checkpoint(tmp_path / "checkpoint")
    ending = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}]
    tokenizer = json.loads((local / "tokenizer.json").read_text())
    tokenizer["post_processor"]["single"] = ending
    (local / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VaExportError) as caught:
        open_source(options(tmp_path, checkpoint=str(local)), tmp_path)
    assert str(caught.value.where).endswith("tokenizer.json")
