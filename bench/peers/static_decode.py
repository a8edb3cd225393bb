"""A decode step in plain torch over a static cache, made to be compiled whole and replayed as a CUDA graph (as gpt-fast does).

It shares the weights of ours. Keys and values lie dense, [B, G, T, D]; every step attends to all T places under a mask, which is
what makes its shapes static. One token a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from bench.ceilings import graphed
from bench.peers.compiled import whole
from torch import Tensor
from torch.nn import functional as F

from innervoice.model.transformer import Transformer


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), w.float(), eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours rotated as pairs over the first 2R of the width: x [B, H, D], cos and sin [B, 1, R]."""
    rotated, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    a, b = rotated[..., ::2].float(), rotated[..., 1::2].float()
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


class StaticDecode:
    """Rows of a fixed number and length, all of them at the same position."""

    def __init__(self, model: Transformer, rows: int, length: int) -> None:
        c, embedding = model.config, model.weights.embedding
        if not c.rope_interleaved or c.qk_norm:
            raise ValueError(
                f"the static peer knows interleaved rotary positions without head norms, not {c.family}'s"
            )
        self.model, self.rows, self.length = model, rows, length
        shape = (c.num_layers, rows, c.num_kv_heads, length, c.head_dim)
        self.k, self.v = (
            torch.randn(shape, dtype=embedding.dtype, device=embedding.device) for _ in range(2)
        )
        self.cos, self.sin = (
            part.float() for part in model.rotation(torch.arange(length, device=embedding.device))
        )
        self.places = torch.arange(length, device=embedding.device)

    def kept(self) -> Iterator[Tensor]:
        """Weights, caches and tables: what stays where it is from step to step."""
        w = self.model.weights
        yield from (self.k, self.v, self.cos, self.sin, self.places, w.embedding, w.final_norm, w.output)
        for layer in w.layers:
            parts = (layer.attention_norm, layer.qkv, layer.qkv_bias, layer.attention_out)
            yield from (
                part for part in (*parts, layer.ffn_norm, layer.gate_up, layer.down) if part is not None
            )

    def step(self, ids: Tensor, position: Tensor) -> Tensor:
        """Greedy next ids [B] for ids [B] at position [1]; their keys and values are written."""
        return self.logits(ids, position).argmax(-1)

    def logits(self, ids: Tensor, position: Tensor) -> Tensor:
        """Logits [B, V] in the model's type."""
        c, w = self.model.config, self.model.weights
        x = F.embedding(ids, w.embedding)  # [B, D]
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # [1, 1, R]
        mask = (self.places <= position)[None, None, None, :]
        for index, layer in enumerate(w.layers):
            qkv = F.linear(rms_norm(x, layer.attention_norm, c.norm_eps), layer.qkv, layer.qkv_bias)
            heads = qkv.unflatten(-1, (-1, c.head_dim))
            q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            self.k[index].index_copy_(2, position, k[:, :, None])
            self.v[index].index_copy_(2, position, v[:, :, None])
            y = F.scaled_dot_product_attention(
                q[:, :, None],
                self.k[index],
                self.v[index],
                attn_mask=mask,
                enable_gqa=True,
                scale=c.head_dim**-0.5,
            )
            x = x + F.linear(y.flatten(1), layer.attention_out)
            gate, up = F.linear(rms_norm(x, layer.ffn_norm, c.norm_eps), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(rms_norm(x, w.final_norm, c.norm_eps), w.output)


def stepper(model: Transformer, rows: int, context: int, *, compiled: bool) -> Callable[[], object]:
    """A function that takes one step at that context, warmed up; compiled whole or, on a GPU, captured as it stands."""
    peer = StaticDecode(model, rows, -(-(context + 1) // 64) * 64)
    ids = torch.arange(rows, device=peer.k.device) % model.config.vocab_size
    position = torch.tensor([context], device=peer.k.device)
    step = whole(peer.step, (*peer.kept(), ids, position), ids.device) if compiled else peer.step

    @torch.inference_mode()
    def run() -> Tensor:
        return step(ids, position)

    for _ in range(3):
        run()
    return graphed([run]) if ids.is_cuda and not compiled else run
