"""What the exporter asks of a model family, and the plain data that a family answers with.

Shapes are those of the Hugging Face model that is exported; names of weights are its parameter names. A family reads
its own checkpoint layout through `weight_map`, so nothing else in the package knows how a checkpoint is packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from va_export.models.component import Component, Role

if TYPE_CHECKING:
    import torch
    from torch import nn

    from va_export.bundle.decoder_shards import DecoderShard
    from va_export.checkpoint.files import Checkpoint
    from va_export.runtime.processing import Processing


@dataclass(frozen=True)
class DynamicNtkScaling:
    """Rotary base that grows by this factor once a sequence is longer than `max_position_embeddings`."""

    factor: float


@dataclass(frozen=True)
class LongRopeScaling:
    """A factor for every frequency, from one of two lists: up to the original length, and beyond."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int


@dataclass(frozen=True)
class TextShape:
    """The decoder's sizes.

    Attributes:
        num_layers: what is exported, fewer than in the checkpoint if cut.
        deepstack_layers: how many of the first layers add features of their own to the visual tokens (DeepStack,
            arXiv 2406.04334). A token's embedding then holds these behind itself, hidden_size values each; zeros for
            text.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: DynamicNtkScaling | LongRopeScaling | None
    deepstack_layers: int = 0

    @property
    def whole_from(self) -> int | None:
        """The position from which on the rotary embedding follows a call's last position; None: it never does."""
        match self.rope_scaling:
            case DynamicNtkScaling():
                return self.max_position_embeddings
            case LongRopeScaling(original_max_position_embeddings=original):
                return original
        return None

    def width_at(self, layer: int) -> int:
        """Values that a token has before that layer: its hidden state and the features not yet added."""
        return self.hidden_size * (1 + max(0, self.deepstack_layers - layer))


@dataclass(frozen=True)
class VisionShape:
    """The vision tower's sizes; a family may know more of its own.

    Attributes:
        keeps_sizes: whether a frame's own size decides how many tokens it becomes.
        positions_per_frame: rows of the tower's hidden states that one frame has, at the most.
    """

    keeps_sizes: ClassVar[bool] = False

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    positions_per_frame: int


@dataclass(frozen=True)
class ModelSpec:
    """One model, ready to be built.

    Attributes:
        family: name of the family that made it.
        hf_config: arguments of the Hugging Face configuration (plain JSON data).
        text, vision: sizes.
        checkpoint_layers: decoder layers in the checkpoint; `text.num_layers` of them are used, from the first.
        text_architecture: the checkpoint's own name for its decoder.
        prompt_template: the checkpoint's name for its chat template.
        image_token_id: id of the placeholder that one visual token of a video replaces; None when the checkpoint does
            not tell, and whoever makes the prompt must know.
        eos_token_ids: ids that end an answer.
        names: what the checkpoint's names begin with, by part of the model, where a family has several layouts.
        unread: tensors that checkpoints hold and the model does not compute with.
        found: keys of config.json that the checkpoint leaves to its tensors, as read off them; a bundle's says them.
    """

    family: str
    hf_config: Mapping[str, Any]
    text: TextShape
    vision: VisionShape
    checkpoint_layers: int
    text_architecture: str
    prompt_template: str
    image_token_id: int | None
    eos_token_ids: tuple[int, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choices:
    """What a user decides of a model before it is built; None leaves it to the checkpoint or the family.

    Attributes:
        num_decoder_layers: how many decoder layers, from the first.
        image_token_id: id of the placeholder.
        max_pixels: of a frame as the model sees it, where frames keep their own sizes.
    """

    num_decoder_layers: int | None = None
    image_token_id: int | None = None
    max_pixels: int | None = None


AS_IT_IS = Choices()


@dataclass(frozen=True)
class RowBlocks:
    """Which rows of a packed weight make up one parameter.

    The first axis is read as (groups, blocks_per_group, block_rows); blocks [start, stop) of every group are kept.
    """

    groups: int
    blocks_per_group: int
    block_rows: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows of the parameter."""
        return self.groups * (self.stop - self.start) * self.block_rows


@dataclass(frozen=True)
class WeightSource:
    """Where one parameter comes from, a checkpoint tensor of a given shape, whole or some of its rows; and which part
    of the model it belongs to.

    Attributes:
        component: the role (`models.component.Role`) of the component that computes with it.
        layer: the decoder layer that it belongs to; None outside of the layers.
        is_joined: the parameter is a matrix: all axes after the first are one, as a convolution whose stride is its
            kernel's size is a linear layer.
    """

    checkpoint_name: str
    checkpoint_shape: tuple[int, ...]
    blocks: RowBlocks | None = None
    component: Role = "vision"
    layer: int | None = None
    is_joined: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        columns = self.checkpoint_shape[1:]
        rows = self.checkpoint_shape[:1] if self.blocks is None else (self.blocks.rows,)
        return (*rows, math.prod(columns)) if self.is_joined else (*rows, *columns)

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The parameter, from the checkpoint's tensor of shape `checkpoint_shape`."""
        if self.blocks is None:
            return tensor.flatten(1) if self.is_joined else tensor
        blocks = self.blocks
        packed = tensor.reshape(blocks.groups, blocks.blocks_per_group, blocks.block_rows, *tensor.shape[1:])
        return packed[:, blocks.start : blocks.stop].reshape(self.shape)


class ModelFamily(Protocol):
    """One model family; `models.FAMILIES` lists them."""

    name: str
    architectures: tuple[str, ...]

    def open_settings(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of `config` that its checkpoints were made for more than one value of, so that a recipe may set them."""

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        """The model that `config` describes.

        Raises:
            VaExportError: `config` contradicts itself or asks for something unsupported.
        """

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        """What config.json of the published checkpoint `hub_id` says, as far as a `ModelSpec` needs it; None where it
        is not known. For planning and for random weights without a network."""

    def spec_from_checkpoint(self, checkpoint: Checkpoint, choices: Choices = AS_IT_IS) -> ModelSpec:
        """`spec_from_config`, with token ids looked up in the checkpoint's tokenizer files, if it has any."""

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        """The Hugging Face model, weights uninitialised; `attention` names the decoder's attention implementation.

        Works under `torch.device("meta")` and under a `FakeTensorMode`.
        """

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        """The parts of the model that become an ONNX file each, in the order in which they run.

        Args:
            precision: `fp32`, `fp16` or `bf16`: the type of the KV cache.
            shards: the ranges of layers that the decoder is cut into; each is a component.
        """

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        """Visual tokens that `n_frames` frames become, at the most."""

    def weight_map(self, spec: ModelSpec) -> Mapping[str, WeightSource]:
        """For every parameter of `build_model(spec)`, where in the checkpoint it lies."""

    def processing(self, spec: ModelSpec, checkpoint: Checkpoint) -> Processing:
        """How frames and a question become the model's inputs."""

    def write_tokenizer(self, checkpoint: Checkpoint, directory: Path) -> Path | None:
        """Write `tokenizer.json` into `directory`; None when the checkpoint has no tokenizer."""

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        """Write a small random checkpoint of this family; the same bytes for the same seed."""
