"""The weights of a GGUF file, under the names of Hugging Face's layout.

Q4_0 and Q4_1 stay as they are: they are our int4.
"""

from __future__ import annotations

import math
from copy import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice.checkpoint.files import require
from innervoice.checkpoint.gguf_file import BLOCK_TYPES, GgufFile, GgufTensor
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape
from innervoice.model.gguf_blocks import BLOCK, SUPPORTED, floats, int4
from innervoice.model.quant import Weight, empty, tensors_of, with_tensors
from innervoice.model.quant_source import WeightSource

_PIECE = 1 << 20  # bytes
_UNUSED = ("attn_rot_embd", "attn_rot_embd.weight")  # tables of the rotation, in early files
_KEPT = {"Q4_0": Quantization("int4", BLOCK, symmetric=True), "Q4_1": Quantization("int4", BLOCK)}
_FLOATS = ("F32", "F16", "BF16")
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
    """A GGUF file.

    Raises FileNotFoundError, ValueError for a damaged file and one with tensors of
    a type that is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._blank = path, False
        self._asked = set[str]()
        self._file = GgufFile.read(path, texts=False)
        for tensor in self._file.tensors.values():
            if tensor.kind not in SUPPORTED:
                raise ValueError(
                    f"{path}: tensor {tensor.name} is of type {tensor.kind}, which is not supported; "
                    f"supported are {', '.join(SUPPORTED)}"
                )
        fields, self._heads = self._file.fields, dict[str, int]()
        if fields.get("general.architecture") == "llama":
            # llama.cpp keeps Llama's queries and keys with the halves of each head interleaved.
            heads = require(fields, "llama.attention.head_count", path, int)
            groups = require(
                {"llama.attention.head_count_kv": heads, **fields}, "llama.attention.head_count_kv", path, int
            )
            self._heads = {"attn_q": heads, "attn_k": groups}

    def check_all_read(self) -> None:
        """Raise ValueError for a tensor that nothing has asked for: the model would be another one without it."""
        unread = [
            name for name in self._file.tensors if name not in self._asked and not name.endswith(_UNUSED)
        ]
        if unread:
            raise ValueError(
                f"{self.path}: tensor {unread[0]} has no place in this model, which is not supported: "
                "is it the file of this config?"
            )

    def blank(self) -> GgufSource:
        """Make of the same file every tensor without numbers, on the meta device, for counting."""
        made = copy(self)
        made._blank = True
        return made

    @property
    def is_quantised(self) -> bool:
        """Whether a tensor of the file is quantised, whatever format its weight is kept in."""
        return any(tensor.kind not in _FLOATS for tensor in self._file.tensors.values())

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor in floating point; dtype None: float32.

        Raises ValueError when it is missing or misshapen.
        """
        own, tensor = self._find(name, shape)
        if self._blank:
            return torch.empty(shape, dtype=dtype or torch.float32, device="meta")
        values = self._floats(own, tensor).reshape(shape)
        return torch.from_numpy(values).to(device=device, dtype=dtype or torch.float32)

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """The weight of a product: int4 where the file has Q4_0 or Q4_1, else dequantised.

        Raises ValueError.
        """
        own, tensor = self._find(name, shape)
        to = _KEPT.get(tensor.kind)
        if to is None:
            return self.get(name, shape, dtype=dtype, device=device)
        if self._blank:
            return empty((shape[0], shape[1]), to, "meta")
        made = int4(self._rows(own, tensor), shape[1], has_minimum=not to.symmetric)
        return with_tensors(made, {name: x.to(device) for name, x in tensors_of(made).items()})

    def _find(self, name: str, shape: Shape) -> tuple[str, GgufTensor]:
        own = _own_name(name)
        self._asked.add(own)
        if own not in self._file.tensors:
            raise ValueError(f"{self.path}: tensor {own} is missing: is it the file of this config?")
        tensor = self._file.tensors[own]
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"{self.path}: tensor {own} has shape {list(tensor.shape)}, expected {list(shape)}: "
                "is it the file of this config?"
            )
        return own, tensor

    def _floats(self, own: str, tensor: GgufTensor) -> NDArray[np.float32]:
        """The numbers of a tensor; of a large one piece by piece, which needs less memory."""
        if tensor.num_bytes <= _PIECE or own.split(".")[-2] in self._heads:
            return floats(self._rows(own, tensor), tensor.kind)
        block = next(one for one in BLOCK_TYPES.values() if one.name == tensor.kind)
        made, at = np.empty(math.prod(tensor.shape), np.float32), 0
        for piece in self._file.pieces(tensor, _PIECE // block.num_bytes * block.num_bytes):
            part = floats(piece, tensor.kind)
            made[at : at + len(part)] = part
            at += len(part)
        return made

    def _rows(self, own: str, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The blocks of a tensor, [N, bytes of a row], rows of queries and keys in the order of Hugging Face's layout."""
        blocks, heads = self._file.blocks(tensor), self._heads.get(own.split(".")[-2])
        rows = blocks.reshape(math.prod(tensor.shape[:-1]), -1)
        if heads is None:
            return rows
        if heads < 1 or len(rows) % (2 * heads):
            raise ValueError(f"{self.path}: {len(rows)} rows of {own} are not the halves of {heads} heads")
        return rows[np.arange(len(rows)).reshape(heads, -1, 2).swapaxes(1, 2).ravel()]


def _own_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return _WHOLE.get(name, name)
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_IN_LAYER.get(part, part)}.{kind}"
