"""The weights of a GGUF file, under the names of Hugging Face's layout.

Q4_0 and Q4_1 stay as they are: they are our int4.

Block formats: ggml-common.h of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice.checkpoint.gguf import open_gguf
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape
from innervoice.model.quant import Int4Weight, Weight, empty, rows_of
from innervoice.model.quant_source import WeightSource

SUPPORTED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
BLOCK = 32  # numbers of a block of Q4_0 and Q4_1
_KEPT = {"Q4_0": Quantization("int4", BLOCK, symmetric=True), "Q4_1": Quantization("int4", BLOCK)}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip
_IN_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


class GgufSource(WeightSource):
    """A GGUF file; blank: every tensor without numbers, on the meta device, for counting.

    Raises FileNotFoundError, ValueError for a damaged file and one with tensors of
    a type that is not supported.
    """

    def __init__(self, path: Path, *, blank: bool = False) -> None:
        self.path, self._blank = path, blank
        reader = open_gguf(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in SUPPORTED:
                raise ValueError(
                    f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, which is not supported; "
                    f"supported are {', '.join(SUPPORTED)}"
                )
        kind = reader.fields["general.architecture"].contents()
        self._heads = {}
        if kind == "llama":  # whose queries and keys llama.cpp keeps with the halves of each head interleaved
            heads = reader.fields["llama.attention.head_count"].contents()
            groups = reader.fields.get("llama.attention.head_count_kv")
            self._heads = {"attn_q": heads, "attn_k": heads if groups is None else groups.contents()}

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor in floating point; dtype None: float32.

        Raises ValueError when it is missing or misshapen.
        """
        own, tensor = self._find(name, shape)
        if self._blank:
            return torch.empty(shape, dtype=dtype or torch.float32, device="meta")
        values = _floats(tensor).reshape(shape)
        order = self._order(own, shape[0])
        return (values if order is None else values[order]).to(device=device, dtype=dtype or torch.float32)

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """The weight of a product: int4 where the file has Q4_0 or Q4_1, else dequantised.

        Raises ValueError.
        """
        own, tensor = self._find(name, shape)
        to = _KEPT.get(tensor.tensor_type.name)
        if to is None:
            return self.get(name, shape, dtype=dtype, device=device)
        if self._blank:
            return empty((shape[0], shape[1]), to, "meta")
        made, order = _int4(tensor, (shape[0], shape[1])), self._order(own, shape[0])
        kept = made if order is None else rows_of(made, order)
        assert isinstance(kept, Int4Weight)
        minimum = None if kept.minimum is None else kept.minimum.to(device)
        return Int4Weight(kept.codes.to(device), kept.scale.to(device), minimum, kept.num_columns, kept.group)

    def _find(self, name: str, shape: Shape) -> tuple[str, Any]:
        own = _own_name(name)
        if own not in self._tensors:
            raise ValueError(f"{self.path}: tensor {own} is missing: is it the file of this config?")
        tensor = self._tensors[own]
        found = tuple(int(n) for n in reversed(tensor.shape))
        if found != tuple(shape):
            raise ValueError(
                f"{self.path}: tensor {own} has shape {list(found)}, expected {list(shape)}: is it the file of this config?"
            )
        return own, tensor

    def _order(self, own: str, num_rows: int) -> Tensor | None:
        """The rows of queries and keys as Hugging Face's layout has them; None: as they are."""
        heads = self._heads.get(own.split(".")[-2])
        if heads is None:
            return None
        return torch.arange(num_rows).view(heads, -1, 2).transpose(1, 2).flatten()


def _own_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return _WHOLE.get(name, name)
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_IN_LAYER.get(part, part)}.{kind}"


def _floats(tensor: Any) -> Tensor:
    """The numbers of a tensor in float32."""
    from gguf import dequantize

    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))


def _int4(tensor: Any, shape: tuple[int, int]) -> Int4Weight:
    """Blocks of scale, minimum (Q4_1) and 16 bytes: numbers 0 to 15 of a block are the low
    halves, 16 to 31 the high ones.
    """
    rows, columns = shape
    groups = math.ceil(columns / BLOCK)
    has_minimum = tensor.tensor_type.name == "Q4_1"
    head = 4 if has_minimum else 2
    blocks: NDArray[np.uint8] = (
        np.ascontiguousarray(tensor.data).view(np.uint8).reshape(rows, groups, head + BLOCK // 2)
    )
    halves = torch.from_numpy(blocks[..., :head].copy().view(np.float16))  # [N, groups, 1 or 2]
    packed = torch.from_numpy(blocks[..., head:].copy())  # [N, groups, 16]
    numbers = torch.cat([packed & 15, packed >> 4], dim=-1)  # [N, groups, 32]
    codes = (numbers[..., 0::2] | numbers[..., 1::2] << 4).flatten(1)
    minimum = halves[..., 1].contiguous() if has_minimum else None
    return Int4Weight(codes, halves[..., 0].contiguous(), minimum, columns, BLOCK)
