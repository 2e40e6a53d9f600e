"""Manifests with made-up but plausible figures, for tests that need no model."""

from __future__ import annotations

from typing import Any

from va_export.bundle.document import (
    ComponentEntry,
    EngineEntry,
    ManifestDocument,
    ModelEntry,
    ProfileEntry,
    TextSizes,
    ToolEntry,
    VisionSizes,
)
from va_export.bundle.manifest import MANIFEST_VERSION
from va_export.bundle.tensors import DimensionRange, TensorInfo
from va_export.settings import GainSettings, Limits, ScoreSettings

PIXELS = ("frames", 3, 448, 448)


def vision_entry() -> ComponentEntry:
    """A vision component with one engine."""
    shapes = {"min": (1, 3, 448, 448), "opt": (8, 3, 448, 448), "max": (16, 3, 448, 448)}
    engine = EngineEntry(
        file="engines/vision.engine",
        version="1.7.1",
        targets=("sm80", "sm89"),
        bytes=5 << 20,
        seconds=12.5,
        peak_memory_bytes=1 << 30,
        plugin_nodes=2,
        plugin_records=2,
        layers={"MATRIX_MULTIPLY": 4},
        profiles=(ProfileEntry(name="frames", ranges={"pixel_values": shapes}),),  # type: ignore[arg-type]
    )
    return ComponentEntry(
        role="vision",
        onnx="onnx/vision.onnx",
        inputs=(TensorInfo("pixel_values", "float32", PIXELS),),
        outputs=(TensorInfo("visual_tokens", "float32", ("visual_count", 4096)),),
        ranges={"frames": {"frames": DimensionRange(1, 8, 16)}},
        engines={"tensorrt-rtx": engine},
    )


def manifest_document(**changes: Any) -> ManifestDocument:
    """A whole manifest of a model without a decoder; `changes` replace fields."""
    sizes = {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "intermediate_size": 14336}
    fields: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "tool": ToolEntry(name="va-export", version="0.1.0"),
        "created": "2025-11-23T10:00:00+00:00",
        "model": ModelEntry(
            name="model-8b",
            source="owner/model-8b",
            revision=None,
            commit=None,
            checkpoint_files={},
            family="internvl2",
            weights="checkpoint",
            text=TextSizes(
                **sizes, num_kv_heads=8, head_dim=128, vocab_size=92553, max_position_embeddings=32768, whole_from=None
            ),
            vision=VisionSizes(**sizes, positions_per_frame=1025),
            image_token_id=92546,
        ),
        "precision": "fp16",
        "precision_loss": {},
        "attention": "plugin",
        "opset": 24,
        "ops": {"AnchoredAttention": 1, "SubspaceScore": 1},
        "libraries": {"torch": "2.13.0", "onnx": "1.23.0"},
        "components": {"vision": vision_entry()},
        "decoder_shards": {"count": 1, "asked": "auto", "reason": "no engines are built"},
        "limits": Limits(),
        "gains": GainSettings(alpha_k=9.5, alpha_v=2.5, alpha_q=4.0),
        "score": ScoreSettings(),
        "plugin": {"library": "plugins/libva_plugins.so", "contract": {}},
        "tokenizer": "tokenizer.json",
        "files": {},
    }
    return ManifestDocument(**{**fields, **changes})
