"""Real published configurations and tokenizers, which lie beside the checkout and not in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from va_export.models import family_for
from va_export.models.checkpoint_tokenizer import read_tokenizer
from va_export.models.internvl2.tokenizer import layout, prefix_ids

REAL = next((path / "shared" / "real" for path in Path(__file__).parents if (path / "shared" / "real").is_dir()), None)
pytestmark = pytest.mark.skipif(REAL is None, reason="shared/real does not lie beside the checkout")

# name → decoder layers, hidden size, visual tokens a frame, placeholder, ids that end an answer.
READ = {
    "OpenGVLab__InternVL2-1B": (24, 896, 256, 151648, (151643, 151645)),
    "OpenGVLab__InternVL2-2B": (24, 2048, 256, 92546, (2, 92542)),
    "OpenGVLab__InternVL2-8B": (32, 4096, 256, 92546, (2, 92542)),
    "OpenGVLab__InternVL2-26B": (48, 6144, 256, 92546, (2, 92542)),
    "OpenGVLab__InternVL2-4B": (32, 3072, 256, 32013, (32000, 32007)),
    "OpenGVLab__InternVL2_5-2B": (24, 2048, 256, 92546, (2, 92542)),
    "OpenGVLab__InternVL3-1B": (24, 896, 256, 151667, (151643, 151645)),
    "RECONSTRUCTED__InternVL2-40B": (60, 7168, 256, 64000, (2, 7)),
    "RECONSTRUCTED__InternVL2-Llama3-76B": (80, 8192, 256, 128258, (128001, 128003)),
}
OTHER_FAMILIES = {"LLM-TPU__Qwen2_5_VL"}  # read, by families of their own


def real(*parts: str) -> Path:
    assert REAL is not None
    return REAL.joinpath(*parts)


def config(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(real("configs", name, "config.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", READ)
def test_published_configurations_are_read(name: str) -> None:
    spec = family_for(config(name)).spec_from_config(config(name))
    layers, hidden, tokens, image, stops = READ[name]
    assert (spec.text.num_layers, spec.text.hidden_size, spec.vision.tokens_per_frame) == (layers, hidden, tokens)
    assert (spec.image_token_id, spec.eos_token_ids) == (image, stops)


def test_every_configuration_is_expected_to_be_read() -> None:
    assert {path.parent.name for path in real("configs").glob("*/config.json")} == {*READ, *OTHER_FAMILIES}


def test_every_name_of_the_published_index_has_its_place() -> None:
    """InternVL2.5-8B's, whose tensors are named as 8B's are."""
    listed = json.loads(real("configs", "OpenGVLab__InternVL2_5-8B.model.safetensors.index.json").read_text())
    content = config("OpenGVLab__InternVL2-8B")
    family = family_for(content)
    spec = family.spec_from_config(content)
    used = {source.checkpoint_name for source in family.weight_map(spec).values()}
    assert len(listed["weight_map"]) == 573 and used | spec.unread == set(listed["weight_map"]), spec.unread


@pytest.mark.parametrize(
    ("tokenizer", "truth", "template"),
    [
        ("OpenGVLab__InternVL2-1B", "OpenGVLab__InternVL2-1B", "Hermes-2"),
        ("OpenGVLab__InternVL2-2B", "OpenGVLab__InternVL2-8B", "internlm2-chat"),  # the same file
        ("OpenGVLab__InternVL2-4B", "OpenGVLab__InternVL2-4B", "phi3-chat"),
        ("RECONSTRUCTED__InternVL2-40B", "RECONSTRUCTED__InternVL2-40B", "Hermes-2"),
    ],
)
def test_ids_are_those_of_the_originals_own_code(tokenizer: str, truth: str, template: str) -> None:
    """By transformers 4.37.2 and OpenGVLab's InternLM2 tokenizer, with their own defaults."""
    with gzip.open(real("tokenizer_truth", f"{truth}.json.gz")) as file:
        expected = json.load(file)
    found = read_tokenizer(real("tokenizers", tokenizer), layout(template))
    notes: list[str] = []
    first = found.first_id("Qwen2" not in str(found.special.tokenizer_class), expected["bos"], notes.append)
    assert found.fast is not None
    assert (found.notes, notes) == ((), [])
    known = [token for token in found.prompt.all if token in expected["special"]]
    assert len(known) >= 3
    for token in known:
        assert found.id_of(token) == expected["special"][token]
    found.check(expected["vocabulary"], None)
    # The original takes 8B's [UNUSED_TOKEN_145] and 146 for <|im_end|> and <|im_start|>, whose places they had, and
    # loses NUL; a question that spells them should not end its own turn.
    rows = [row for row in expected["rows"] if "[UNUSED_TOKEN_14" not in row["text"] and "\0" not in row["text"]]
    assert len(rows) > 1900
    start = [] if first is None else [first]
    ids = found.fast.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    mine = [[*start, *prefix_ids(found, row["text"]), *one.ids] for row, one in zip(rows, ids, strict=True)]
    wrong = [row["text"] for row, one in zip(rows, mine, strict=True) if one != row["ids"]]
    assert wrong == []
    back = found.fast.decode_batch([row["ids"] for row in rows])
    # 4B's original shows added tokens that no file names, such as <|end|>; ours leaves all of them out.
    told = [row["dec"] for row, one in zip(rows, back, strict=True) if one != row["dec"]]
    assert [text for text in told if "<|" not in text] == []
    decoded = found.fast.decode_batch([ids for ids, _ in expected["decoded_ids"]])
    # Known to differ, of 300: the original of 40B shows no control piece (<|Assistant|>), and 4B's keeps a byte that
    # follows one that is no character, where the tokenizers library loses it.
    differing = sum(one != text for one, (_, text) in zip(decoded, expected["decoded_ids"], strict=True))
    assert differing <= {
        "OpenGVLab__InternVL2-4B": 2,
        "RECONSTRUCTED__InternVL2-40B": 1,
    }.get(truth, 0)
