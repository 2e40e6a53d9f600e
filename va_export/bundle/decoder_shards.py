"""The decoder in consecutive ranges of layers.

Every range (shard) becomes one ONNX file and one engine. The first takes input embeddings, the others the hidden states
of the shard before; the last has the final norm and the language model's head. A decoder in one shard is the plain
component `decoder`; several are `decoder_0`, `decoder_1`, ….
"""

from __future__ import annotations

from dataclasses import dataclass

DECODER = "decoder"


@dataclass(frozen=True)
class DecoderShard:
    """Layers [first_layer, stop_layer) of a decoder of `num_layers`.

    Attributes:
        name: of the component and its files.
    """

    name: str
    first_layer: int
    stop_layer: int
    num_layers: int

    @property
    def is_first(self) -> bool:
        """Whether it takes the input embeddings."""
        return self.first_layer == 0

    @property
    def is_last(self) -> bool:
        """Whether it has the final norm and the head."""
        return self.stop_layer == self.num_layers

    @property
    def is_whole(self) -> bool:
        """Whether the decoder is in one piece."""
        return self.is_first and self.is_last

    @property
    def layers(self) -> range:
        """Indices of its layers, those of the whole decoder."""
        return range(self.first_layer, self.stop_layer)

    @property
    def input_name(self) -> str:
        """What it takes, (B, S, D) float32."""
        return "inputs_embeds" if self.is_first else "hidden_states"

    @property
    def output_name(self) -> str:
        """What it gives: (B, vocab) or (B, S, D), both float32."""
        return "logits" if self.is_last else "next_hidden_states"
