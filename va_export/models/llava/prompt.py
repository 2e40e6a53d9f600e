"""LLaVA's prompt (`qwen_1_5` of LLaVA-NeXT's conversation.py) and its preprocessing of frames.

As the official wrapper asks: one user turn, the video, a line break, the question; no sentence about time. In the
original's layout the video's place is no token: prompts are cut there.
"""

from __future__ import annotations

from va_export.models.checkpoint_tokenizer import PromptTokens
from va_export.models.family import ModelSpec
from va_export.models.llava.config import NO_TOKEN
from va_export.models.llava.pooled import pooled
from va_export.runtime.processing.fixed_frames import FixedFrames

END_OF_TURN, _ORIGINAL_IMAGE, VIDEO_TOKEN = "<|im_end|>", "<image>", "<video>"
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{frames}\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def prompt_tokens(*, is_original: bool) -> PromptTokens:
    """The tokens that prompts are made of."""
    return PromptTokens(None if is_original else VIDEO_TOKEN, END_OF_TURN, ("<|im_start|>",))


def processing(spec: ModelSpec, bos_token_id: int | None) -> FixedFrames:
    """How frames and a question become inputs of the model that `spec` describes."""
    vision = pooled(spec)
    return FixedFrames(
        image_size=vision.image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resample="bicubic",
        frame_sampling="uniform-index-floor",
        tokens_per_frame=vision.tokens_per_frame,
        tokens_after=vision.tokens_after,
        grid=vision.grid,
        image_token=_ORIGINAL_IMAGE if spec.image_token_id == NO_TOKEN else VIDEO_TOKEN,
        image_token_id=spec.image_token_id,
        chat_template=_CHAT,
        frame_template="{image}",
        bos_token_id=bos_token_id,
        stop_token_ids=spec.eos_token_ids,
    )
