"""InternVL2's chat templates and its preprocessing of video frames.

Source: OpenGVLab's `conversation.py` (separator style MPT: system, separator, then role and message with a separator
each; no line break after a separator) and the model cards' video code: one tile a frame, lines "Frame1: <image>".
The two templates differ in training only, where one of them starts with <s>; at inference that is the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping

from va_export.models.checkpoint_tokenizer import PromptTokens
from va_export.models.family import ModelSpec
from va_export.models.internvl2.tiles import tiles
from va_export.runtime.processing.fixed_frames import FixedFrames

IMAGE_TOKEN = "<IMG_CONTEXT>"
END_OF_TURN = "<|im_end|>"
PROMPT_TOKENS = PromptTokens(IMAGE_TOKEN, END_OF_TURN, ("<|im_start|>", "<img>", "</img>"))

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FRAME = "Frame{number}: <img>{image}</img>\n"
_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"

_CHATML = (
    f"<|im_start|>system\n{_SYSTEM}<|im_end|><|im_start|>user\n{{frames}}{{question}}<|im_end|><|im_start|>assistant\n"
)
_CHAT_TEMPLATES: Mapping[str, str] = {"internlm2-chat": _CHATML, "Hermes-2": _CHATML}


def processing(spec: ModelSpec, bos_token_id: int | None) -> FixedFrames:
    """How frames and a question become inputs of the model that `spec` describes; every prompt starts with
    `bos_token_id`, if there is one."""
    return FixedFrames(
        image_size=tiles(spec).image_size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        resample="bicubic",
        frame_sampling="segment-midpoint",
        tokens_per_frame=tiles(spec).tokens_per_frame,
        image_token=IMAGE_TOKEN,
        image_token_id=spec.image_token_id,
        chat_template=_CHAT_TEMPLATES[spec.prompt_template],
        frame_template=_FRAME,
        bos_token_id=bos_token_id,
        stop_token_ids=spec.eos_token_ids,
    )
