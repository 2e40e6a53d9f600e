"""Quantised and otherwise unreadable weights, named as what they are: none of them are read.

How each method stores a matrix `x.weight` is told by the names and types of what stands in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from va_export.errors import VaExportError

if TYPE_CHECKING:
    import torch

_FIX = "use the checkpoint that was quantised: the original in bfloat16, float16 or float32"
_PLAIN = {f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "bool")}
_SCALED = "FP8"  # or integers: the type of the weights tells
# Endings of tensor names, most telling first.
_METHODS = (
    (
        "bitsandbytes",
        re.compile(r"\.(quant_state\.bitsandbytes__\w+|weight\.absmax|absmax|quant_map|SCB|weight_format)$"),
    ),
    ("GGUF", re.compile(r"\.qweight_type$")),
    ("GPTQ", re.compile(r"\.g_idx$")),
    ("EETQ or QQQ", re.compile(r"\.(weight_scales|s_channel|s_group)$")),
    ("AWQ", re.compile(r"\.(qweight|qzeros)$")),
    ("AQLM", re.compile(r"\.codebooks$")),
    ("EXL2", re.compile(r"\.q_(weight|scale|scale_max|groups|invperm|perm)$")),
    ("QuIP", re.compile(r"\.Qidxs\w*$")),
    ("HIGGS", re.compile(r"\.tables2?$")),
    ("HQQ", re.compile(r"\.W_q$")),
    ("compressed-tensors", re.compile(r"\.weight_(packed|shape|zero_point|global_scale)$")),
    ("MXFP4", re.compile(r"_(blocks|scales)$")),
    ("NVFP4", re.compile(r"\.weight_scale_2$")),
    (_SCALED, re.compile(r"\.(weight_scale|weight_scale_inv|input_scale|k_scale|v_scale)$")),
    ("quanto", re.compile(r"\.weight\._(data|scale)$")),
    ("MLX", re.compile(r"\.(scales|biases)$")),
)
_ADAPTER = re.compile(r"(^|\.)(base_model\.model|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\.")


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says its weights are quantised, at the top or in the part of one of its models.

    Raises:
        VaExportError: naming the method.
    """
    sections = {"": config} | {f"{key}.": value for key, value in config.items() if isinstance(value, Mapping)}
    for prefix, section in sections.items():
        for key in ("quantization_config", "quantization", "compression_config"):
            if settings := section.get(key):
                raise VaExportError(
                    f"the checkpoint is quantised ({_described(settings)}); quantised weights are not read",
                    where=f"config.json: {prefix}{key}",
                    fix=_FIX,
                )


def named_as_unreadable(tensors: Mapping[str, torch.dtype]) -> tuple[str, str] | None:
    """What weights with such tensors are, if they are no plain ones, and what to do; None for plain ones.

    Args:
        tensors: name → type of all of them.
    """
    if adapter := next((name for name in tensors if _ADAPTER.search(name)), None):
        return (
            f"the weights are those of a LoRA adapter, or have one beside them unmerged ({adapter})",
            "merge the adapter into the model first (peft: merge_and_unload) and give what that saves",
        )
    for method, pattern in _METHODS:
        if name := next((name for name in tensors if pattern.search(name)), None):
            if method == _SCALED and not any("float8" in str(kind) for kind in tensors.values()):
                method = "integers and scales"
            return f"the checkpoint is quantised ({method}: {name}); quantised weights are not read", _FIX
    if name := next((name for name, kind in tensors.items() if str(kind) not in _PLAIN), None):
        return f"the checkpoint is quantised ({name} is {tensors[name]}); quantised weights are not read", _FIX
    return None


def _described(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return str(settings)[:40]
    method = next(
        (str(settings[key]) for key in ("quant_method", "quant_algo", "mode") if key in settings), "unknown method"
    )
    bits = settings.get("bits", settings.get("w_bit"))
    return f"{method}, {bits} bits" if isinstance(bits, int) else method
