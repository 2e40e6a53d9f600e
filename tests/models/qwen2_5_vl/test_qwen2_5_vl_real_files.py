"""The published configuration and tokenizer, which lie beside the checkout and not in it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from command_line import va_export

from va_export.models.checkpoint_tokenizer import read_tokenizer
from va_export.models.patch_prompt import LAYOUT

REAL = next((path / "shared" / "real" for path in Path(__file__).parents if (path / "shared" / "real").is_dir()), None)
pytestmark = pytest.mark.skipif(REAL is None, reason="shared/real does not lie beside the checkout")


def real(*parts: str) -> Path:
    assert REAL is not None
    return REAL.joinpath(*parts)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published 3B's files without weights."""
    directory = tmp_path_factory.mktemp("checkpoint")
    for folder in (real("configs", "LLM-TPU__Qwen2_5_VL"), real("tokenizers", "Qwen__Qwen2.5-VL")):
        for path in folder.iterdir():
            shutil.copyfile(path, directory / path.name)
    return directory


def test_the_published_3b_is_planned(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--fp16", "--weights", "random", "--dry-run", "--num-decoder-layers", 2, "--onnx-only")
    outcome = va_export("--model", checkpoint, "-o", tmp_path / "bundle", *options)
    assert outcome.code == 0, outcome.stderr
    assert "onnx/vision.onnx.data" in outcome.stdout + outcome.stderr


def test_ids_are_those_of_transformers(checkpoint: Path) -> None:
    """Transformers' own slow-to-fast conversion of the same files is the truth, on strings of many languages."""
    from transformers import Qwen2TokenizerFast

    found = read_tokenizer(checkpoint, LAYOUT)
    assert found.fast is not None and found.notes == ()
    truth = Qwen2TokenizerFast.from_pretrained(checkpoint)
    with gzip.open(real("tokenizer_truth", "OpenGVLab__InternVL2-1B.json.gz")) as file:
        texts = [row["text"] for row in json.load(file)["rows"]]
    texts += [
        f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{text}<|im_end|>\n" for text in texts[:200]
    ]
    mine = found.fast.encode_batch(texts, add_special_tokens=False)
    wrong = [text for text, ids in zip(texts, mine, strict=True) if ids.ids != truth(text)["input_ids"]]
    assert wrong == [] and len(texts) > 2000


def test_ids_of_prompts_and_stops(checkpoint: Path) -> None:
    found = read_tokenizer(checkpoint, LAYOUT)
    assert (found.image_token_id, found.end_of_turn_id) == (151656, 151645)
    assert found.special.stop_ids == (151645, 151643)
    notes: list[str] = []
    assert found.first_id(default=False, config_bos=None, note=notes.append) is None and notes == []
