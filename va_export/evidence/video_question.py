"""One question about a video in PyTorch, stage by stage: what VideoAnchor costs from the frames to the last token.

The model is a Hugging Face one with random weights made on the device: time and memory depend on shapes, not on
values. Decoding is forced along given tokens, so that every form of attention does the same work and their logits can
be compared row by row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from va_export.anchor.gains import gains_from_score
from va_export.anchor.hugging_face_cache import cache_of_output, with_cache
from va_export.evidence.attention_forms import AttentionForm
from va_export.models.family import ModelFamily, ModelSpec
from va_export.settings import GainSettings

STAGES = ("vision", "score", "prefill", "decode_per_token", "total")
WEIGHT_STD = 0.02  # the initializer_range of both text and vision configurations

# Visual tokens (N, D) → sharing score (N,), and the seconds that stand for it where the clock's are not meant.
Scorer = Callable[[Tensor], tuple[Tensor, float | None]]


@dataclass(frozen=True)
class Question:
    """Inputs on the device.

    Attributes:
        pixel_values: [F, 3, S, S] in the model's dtype.
        input_ids: [1, S] int64.
        is_visual: [1, S] bool, the positions that take visual tokens.
        forced_tokens: the tokens fed while decoding; as many logit rows come out, prefill's last one first.
    """

    pixel_values: Tensor
    input_ids: Tensor
    is_visual: Tensor
    forced_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        seconds: by stage of `STAGES`; without anchors there is no score.
        logits: [T, vocab] float32 on the host, row t is what token t would have been chosen from.
        visual_tokens: [N, hidden_size] on the device.
        sharing_score: [N] on the host, or None without anchors.
        peak_bytes: most device memory that was allocated during the run, weights included; None on a CPU.
    """

    seconds: dict[str, float]
    logits: Tensor
    visual_tokens: Tensor
    sharing_score: Tensor | None
    peak_bytes: int | None = None


def random_model(family: ModelFamily, spec: ModelSpec, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """The family's model with weights from a normal distribution, made on the device and in `dtype`: norms 1, biases 0.

    Memory: the weights once.
    """
    with torch.device("meta"):
        model: nn.Module = family.build_model(spec, attention="sdpa")
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def use_form(model: Any, form: AttentionForm) -> None:
    """Select a form of attention in the text decoder alone."""
    model.get_decoder().set_attn_implementation(form.implementation)


@torch.inference_mode()
def ask(model: Any, form: AttentionForm, question: Question, scorer: Scorer | None, gains: GainSettings) -> Run:
    """Answer once with `form`, which `use_form` has selected. `scorer` is needed by anchored forms."""
    device = question.input_ids.device
    clock = _Clock(device)
    text = model.get_decoder()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = clock.now()
    visual = model.model.get_image_features(question.pixel_values, return_dict=True).pooler_output.flatten(0, 1)
    clock.stage("vision", start)

    key_log_gain = value_gain = score = None
    if form.anchored:
        assert scorer is not None
        start = clock.now()
        score, stated_seconds = scorer(visual)
        pair = gains_from_score(
            score,
            question.is_visual[0],
            question.input_ids.shape[1],
            alpha_k=gains.alpha_k,
            alpha_v=gains.alpha_v,
        )
        key_log_gain, value_gain = (gain[None].to(device) for gain in pair)
        clock.stage("score", start)
        if stated_seconds is not None:
            clock.seconds["score"] = stated_seconds

    with form.context():
        start = clock.now()
        embeds = model.get_input_embeddings()(question.input_ids)
        embeds[question.is_visual] = visual.to(embeds.dtype)
        state = text(inputs_embeds=embeds, use_cache=True, key_log_gain=key_log_gain, value_gain=value_gain)
        logits = [model.lm_head(state.last_hidden_state[:, -1])]
        clock.stage("prefill", start)

        start = clock.now()
        cache = cache_of_output(state)
        for token in question.forced_tokens[:-1]:
            logits[-1].argmax(-1)  # a real answer chooses its token; the forced one is what is fed
            ids = torch.full((1, 1), token, device=device)
            state = text(input_ids=ids, use_cache=True, **with_cache(text, cache))
            logits.append(model.lm_head(state.last_hidden_state[:, -1]))
        clock.stage("decode", start)
    steps = len(question.forced_tokens) - 1
    seconds = clock.seconds
    seconds["total"] = sum(seconds.values())
    decode = seconds.pop("decode")
    if steps:
        seconds["decode_per_token"] = decode / steps
    return Run(
        seconds=seconds,
        logits=torch.cat(logits).float().cpu(),
        visual_tokens=visual,
        sharing_score=None if score is None else score.float().cpu(),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


class _Clock:
    """Seconds by stage, as somebody waits for them: the device is synchronised at every border."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def stage(self, name: str, start: float) -> None:
        self.seconds[name] = self.now() - start
