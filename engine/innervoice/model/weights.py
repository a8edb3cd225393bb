"""The tensors of a decoder, as plain dataclasses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from innervoice.model.pages import Activations
from innervoice.model.quant import Int4Weight, Int8Weight, Weight, in_lanes, laid_out, num_bytes


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer. Linear weights are [out, in], perhaps quantised.

    qkv: rows of all query heads, then key heads, then value heads; gate_up: gate rows (through SiLU), then up
    rows; q_norm and k_norm: of one head, the same for all. Of experts gate_up and down stand one below the other,
    [2F E, D] and [D E, F], and router is there.
    """

    attention_norm: Tensor  # [D]
    qkv: Weight  # [(H + 2G) * head_dim, D]
    qkv_bias: Tensor | None
    attention_out: Weight  # [D, H * head_dim]
    ffn_norm: Tensor  # [D]
    gate_up: Weight  # [2F, D]
    down: Weight  # [D, F]
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None
    router: Tensor | None = None  # [E, D]


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a decoder, on one device. output is the embedding itself where they are tied.

    All that is not quantised is of one type, which is the type of the hidden states too.
    """

    embedding: Weight  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [D]
    output: Weight  # [V, D]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all tensors that are not quantised."""
        return self.final_norm.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, an embedding that is the output layer counted once."""
        layers = (getattr(layer, field.name) for layer in self.layers for field in fields(layer))
        tables = [self.embedding] if self.output is self.embedding else [self.embedding, self.output]
        return sum(num_bytes(x) for x in (*layers, *tables, self.final_norm) if x is not None)

    @property
    def has_codes(self) -> bool:
        """Whether weights of products are int8 or int4."""
        parts = [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        return any(isinstance(part, Int8Weight | Int4Weight) for part in (*parts, self.output))

    def laid_out(self) -> ModelWeights:
        """The same weights, in memory as the GPU's kernels read them best; on a CPU they stay as they are."""
        return self if self.device.type == "cpu" else self._turned(laid_out)

    @property
    def loses_most(self) -> bool:
        """Whether rounding all inputs to 8 bits may cost 0.5% of perplexity, as it was measured to.

        So it is where the output layer, and the embedding with it, is int4 in groups of 32 with minima like the layers.
        """
        held = [self.output, *(layer.qkv for layer in self.layers)]
        return all(isinstance(x, Int4Weight) and x.group == 32 and x.minimum is not None for x in held)

    def for_inputs(self, activations: Activations, *, in_place: bool = False) -> ModelWeights:
        """The same weights as the CPU multiplies them with inputs so rounded: quantised ones in lanes for 8 bits.

        "mixed": all but those of queries, keys and values. in_place: in their own memory, which uses these weights up.
        """
        if activations == "native":
            return self
        return self._turned(partial(in_lanes, in_place=in_place), but_qkv=activations == "mixed")

    def _turned(self, turn: Callable[[Weight], Weight], *, but_qkv: bool = False) -> ModelWeights:
        def turned(x: LayerWeights) -> LayerWeights:
            out, gate_up, down = (turn(weight) for weight in (x.attention_out, x.gate_up, x.down))
            qkv = x.qkv if but_qkv else turn(x.qkv)
            return replace(x, qkv=qkv, attention_out=out, gate_up=gate_up, down=down)

        embedding = turn(self.embedding)
        output = embedding if self.output is self.embedding else turn(self.output)
        return replace(self, embedding=embedding, layers=tuple(map(turned, self.layers)), output=output)

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.final_norm.device
