"""The chat templates of InternVL2, 2.5, 3 and 3.5, and their preprocessing of video frames.

Sources: OpenGVLab's `conversation.py` (separator style MPT: system, separator, then role and message with a separator
each) and the model cards' video code: one tile a frame, on a line of its own. `internlm2-chat` and `Hermes-2` differ in
training only, where one of them starts with <s>; at inference that is the tokenizer's.

transformers' layout has a template of its own: no system message, and frames as its processor writes them
(`replace_video_token` of transformers 5.17), with the line break that the template puts behind a video. `chat_template`
says where the template's text is from. transformers' conversion script writes the same size, mean, deviation and
resizing as OpenGVLab's. Which frames are taken it leaves to the caller; here it is the original's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from va_export.models.checkpoint_tokenizer import PromptTokens
from va_export.models.family import ModelSpec
from va_export.models.internvl2.layouts import TRANSFORMERS_TEMPLATE
from va_export.models.internvl2.tiles import tiles
from va_export.runtime.processing.fixed_frames import FixedFrames

IMAGE_TOKEN = "<IMG_CONTEXT>"
END_OF_TURN = "<|im_end|>"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written.

    Attributes:
        text: with the fields {system}, {frames} and {question}.
        system: the system message, where config.json has none.
        frame: one frame's line.
        tokens: special tokens that occur.
    """

    text: str
    system: str
    frame: str
    tokens: PromptTokens


def _chatml(separator: str, system: str, frame: str) -> ChatTemplate:
    text = (
        f"<|im_start|>system\n{{system}}{separator}<|im_start|>user\n{{frames}}{{question}}{separator}"
        "<|im_start|>assistant\n"
    )
    return ChatTemplate(text, system, frame, PromptTokens(IMAGE_TOKEN, END_OF_TURN, ("<|im_start|>", *_AROUND)))


_AROUND = ("<img>", "</img>")
_FRAME, _FRAME_2_5 = "Frame{number}: <img>{image}</img>\n", "Frame-{number}: <img>{image}</img>\n"
_CHATML = _chatml(END_OF_TURN, _SYSTEM, _FRAME)
CHAT_TEMPLATES: Mapping[str, ChatTemplate] = {
    "internlm2-chat": _CHATML,
    "Hermes-2": _CHATML,
    "internvl2_5": _chatml(f"{END_OF_TURN}\n", _SYSTEM_2_5, _FRAME_2_5),
    TRANSFORMERS_TEMPLATE: ChatTemplate(
        f"<|im_start|>user\n{{frames}}{{question}}{END_OF_TURN}\n<|im_start|>assistant\n", "", _FRAME, _CHATML.tokens
    ),
    "phi3-chat": ChatTemplate(
        "<|system|>\n{system}<|end|><|user|>\n{frames}{question}<|end|><|assistant|>\n",
        _SYSTEM,
        _FRAME,
        PromptTokens(IMAGE_TOKEN, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", *_AROUND)),
    ),
}


def prompt_tokens(template: object) -> PromptTokens:
    """The tokens of a template's prompts; of an unknown one, which is refused elsewhere, the usual."""
    return CHAT_TEMPLATES.get(str(template), _CHATML).tokens


def processing(spec: ModelSpec, bos_token_id: int | None, system_message: str | None = None) -> FixedFrames:
    """How frames and a question become inputs of the model that `spec` describes.

    Args:
        bos_token_id: what every prompt starts with, if anything.
        system_message: config.json's, instead of the template's.
    """
    template = CHAT_TEMPLATES[spec.prompt_template]
    system = template.system if system_message is None else system_message
    return FixedFrames(
        image_size=tiles(spec).image_size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        resample="bicubic",
        frame_sampling="segment-midpoint",
        tokens_per_frame=tiles(spec).tokens_per_frame,
        image_token=IMAGE_TOKEN,
        image_token_id=spec.image_token_id,
        chat_template=template.text.replace("{system}", system),
        frame_template=template.frame,
        bos_token_id=bos_token_id,
        stop_token_ids=spec.eos_token_ids,
    )
