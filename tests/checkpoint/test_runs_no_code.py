"""A checkpoint's own code is never run: Python files, pickles, templates, whatever its configuration says of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resealing import reseal

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.hub import DOWNLOAD_PATTERNS
from va_export.errors import VaExportError
from va_export.models import family_for
from va_export.models.parameters import load_model
from va_export.report.html import _templates
from va_export.runtime.bundle import Bundle

MARK = "MARK_OF_A_CHECKPOINT"
PYTHON = f"import os\nos.environ[{MARK!r}] = __file__\n"
# Reaches the interpreter from a template that is not in the sandbox.
TEMPLATE = "{{ cycler.__init__.__globals__.os.environ.__setitem__('" + MARK + "', 'template') }}"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    "AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None],
}
CODE_FILES = (
    "configuration_internvl_chat.py", "modeling_internvl_chat.py", "tokenization_internlm2.py", "conversation.py",
    "__init__.py", "setup.py", "sitecustomize.py", "conftest.py", "handler.py", "custom_generate/generate.py",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    os.environ.pop(MARK, None)
    yield
    assert os.environ.pop(MARK, None) is None


class Marked:
    """Leaves a mark in `os.environ` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (PYTHON.replace("__file__", "'pickle'"),)


def plant(directory: Path) -> None:
    """Code in every place where others run it."""
    for name in CODE_FILES:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(PYTHON)
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "optimizer.pth", "scaler.pkl"):
        (directory / name).write_bytes(pickle.dumps(Marked()))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "generation_config.json").write_text(json.dumps({"custom_generate": "./custom_generate"}))
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= {"auto_map": AUTO_MAP, "trust_remote_code": True, "chat_template": TEMPLATE}
        for part in ("llm_config", "vision_config"):
            if part in content:
                content[part]["auto_map"] = AUTO_MAP
        path.write_text(json.dumps(content))


@pytest.fixture
def hostile(deep_checkpoint: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(deep_checkpoint, tmp_path / "checkpoint"))
    plant(directory)
    return directory


def test_the_traps_work(tmp_path: Path) -> None:
    """Each of them leaves its mark with a library that runs it."""
    import jinja2

    pickle.loads(pickle.dumps(Marked()))
    assert os.environ.pop(MARK) == "pickle"
    jinja2.Template(TEMPLATE).render()
    assert os.environ.pop(MARK) == "template"
    exec(compile(PYTHON, "x.py", "exec"), {"__file__": "x.py"})
    assert os.environ.pop(MARK) == "x.py"


def test_a_checkpoint_is_read_and_its_model_built_without_its_code(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)  # where imports by name would find its files
    checkpoint = Checkpoint.open(hostile)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    load_model(family, spec, checkpoint, torch.float32, "sdpa")
    family.write_tokenizer(checkpoint, hostile.parent)
    prompt = family.processing(spec, checkpoint).prompt_text("What moves?", 1)
    assert "cycler" not in prompt and "What moves?" in prompt


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json", "tokenizer_config.json"])
def test_pickles_under_other_names_are_refused(hostile: Path, name: str) -> None:
    (hostile / "tokenizer.json").unlink()
    (hostile / name).write_bytes(pickle.dumps(Marked()))
    with pytest.raises(VaExportError) as caught:
        checkpoint = Checkpoint.open(hostile)
        family = family_for(checkpoint.config)
        family.spec_from_checkpoint(checkpoint)
        family.write_tokenizer(checkpoint, hostile.parent)
    assert Path(str(caught.value.where)).name in (name, "config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_checkpoint_of_pickles_is_refused(hostile: Path, name: str) -> None:
    (hostile / "model.safetensors").unlink()
    (hostile / name).write_bytes(pickle.dumps(Marked()))
    with pytest.raises(VaExportError) as caught:
        Checkpoint.open(hostile)
    assert caught.value.where == str(hostile)


def test_no_code_is_downloaded() -> None:
    names = (*CODE_FILES, "pytorch_model.bin", "model.pt", "chat_template.jinja", "libx.so")
    assert not [name for name in names for pattern in DOWNLOAD_PATTERNS if Path(name).match(pattern)]


def test_a_bundle_on_pytorch_runs_nothing_of_its_folder(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(copied_bundle)
    reseal(copied_bundle, "config.json")
    monkeypatch.chdir(copied_bundle)
    with Bundle.open(copied_bundle, "torch") as bundle:
        assert len(bundle.generate(input_ids=[[1, 2, 3]], max_new_tokens=1).tokens) == 1


def test_the_reports_templates_are_in_the_sandbox() -> None:
    from jinja2.exceptions import SecurityError

    templates = _templates()
    with pytest.raises(SecurityError):
        templates.from_string("{{ ''.__class__.__mro__ }}").render()
    with pytest.raises(SecurityError):
        templates.from_string("{{ items.append(1) }}").render(items=[])
    assert templates.from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
