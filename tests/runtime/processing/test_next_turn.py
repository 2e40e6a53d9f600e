"""What follows an answer in a conversation, against the published templates and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from va_export.runtime.processing.templates import fill, next_turn

REAL = next((path / "shared" / "real" for path in Path(__file__).parents if (path / "shared" / "real").is_dir()), None)
QUESTIONS = ("what moves?", "{and} where <|im_end|> to?")


@pytest.mark.parametrize(
    ("template", "closings", "expected"),
    [
        (  # Hermes-2 and internlm2-chat of InternVL2
            "<|im_start|>system\nS<|im_end|><|im_start|>user\n{frames}{question}<|im_end|><|im_start|>assistant\n",
            ("<|endoftext|>", "<|im_end|>"),
            "<|im_end|><|im_start|>user\nQ<|im_end|><|im_start|>assistant\n",
        ),
        (  # internvl2_5, LLaVA's qwen_1_5, whose line break before the question is the video's
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{frames}\n{question}<|im_end|>\n<|im_start|>assistant\n",
            ("<|im_end|>",),
            "<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        ),
        (  # phi3-chat of InternVL2-4B
            "<|system|>\nS<|end|><|user|>\n{frames}{question}<|end|><|assistant|>\n",
            ("</s>", "<|end|>"),
            "<|end|><|user|>\nQ<|end|><|assistant|>\n",
        ),
        ("<|user|>{frames}{question}<|end|><|assistant|>", ("<|end|>",), None),  # no turn ends before the question
        ("S<|end|>{frames}{question}\nAnswer: ", ("<|end|>",), None),  # nor behind it
        ("S<|end|>{frames}{question}<|end|>", (), None),
    ],
)
def test_by_hand(template: str, closings: tuple[str, ...], expected: str | None) -> None:
    assert next_turn(template, "Q", closings) == expected


@pytest.mark.skipif(REAL is None, reason="shared/real does not lie beside the checkout")
@pytest.mark.parametrize("name", ["Qwen__Qwen2.5-VL", "OpenGVLab__InternVL3"])
def test_a_conversation_is_what_the_published_template_says(name: str) -> None:
    assert REAL is not None
    config = json.loads((REAL / "tokenizers" / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    system = "You are a helpful assistant."
    said = [("system", system), ("user", QUESTIONS[0]), ("assistant", "a bicycle"), ("user", QUESTIONS[1])]
    messages = [{"role": role, "content": text} for role, text in said]
    render = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"]).render
    whole = render(messages=messages, add_generation_prompt=True)
    turns = render(
        messages=[*messages[:1], {"role": "user", "content": "{frames}{question}"}], add_generation_prompt=True
    )
    following = next_turn(turns, QUESTIONS[1], ("<|endoftext|>", "<|im_end|>"))
    assert following is not None
    assert whole == fill(turns, frames="", question=QUESTIONS[0]) + "a bicycle" + following
