"""The transformer of ChatGLM, small; every tensor has the name that the shipped checkpoint gives it.

Source: GLM team, "ChatGLM: A Family of Large Language Models", 2024, and its public code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from training.lm.vocabulary import SIZE

WIDTH = 192
NUM_LAYERS = 4
NUM_HEADS = 4
NUM_GROUPS = 2
HEAD_WIDTH = 48
FFN_WIDTH = 384
EPSILON = 3.90625e-08
ROPE_WIDTH = HEAD_WIDTH // 2
DROPOUT = 0.2


class RmsNorm(nn.Module):
    """Root mean square norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]"""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * self.weight


class Attention(nn.Module):
    """Causal attention with fewer keys than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [NUM_HEADS * HEAD_WIDTH, NUM_GROUPS * HEAD_WIDTH, NUM_GROUPS * HEAD_WIDTH]
        self.query_key_value = nn.Linear(WIDTH, sum(self.sizes))
        self.dense = nn.Linear(NUM_HEADS * HEAD_WIDTH, WIDTH, bias=False)

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], cache: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]; a cache holds keys and values of what came before, and is added to."""
        parts = self.query_key_value(x).split(self.sizes, -1)
        query, key, value = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in parts)
        query, key = rotated(query, *rope), rotated(key, *rope)
        if cache is not None:
            if cache:
                key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
            cache[:] = [key, value]
        shared = NUM_HEADS // NUM_GROUPS
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=x.shape[1] > 1)
        return self.dense(y.transpose(1, 2).flatten(2))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of the first half of each head by the place. [B, H, T, K], [T, K / 4] twice"""
    turned, kept = x.split([ROPE_WIDTH, HEAD_WIDTH - ROPE_WIDTH], -1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return torch.cat([pairs.flatten(-2), kept], -1)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(WIDTH, 2 * FFN_WIDTH, bias=False)
        self.dense_4h_to_h = nn.Linear(FFN_WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]"""
        gate, value = self.dense_h_to_4h(x).chunk(2, -1)
        return self.dense_4h_to_h(F.silu(gate) * value)


class Layer(nn.Module):
    """Attention and SwiGLU, each normed before and added."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm()
        self.self_attention = Attention()
        self.post_attention_layernorm = RmsNorm()
        self.mlp = Mlp()

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], cache: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]"""
        x = x + F.dropout(self.self_attention(self.input_layernorm(x), rope, cache), DROPOUT, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), DROPOUT, self.training)


class Embedding(nn.Module):
    """The table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(SIZE, WIDTH)


class Encoder(nn.Module):
    """The layers and the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.final_layernorm = RmsNorm()


class Transformer(nn.Module):
    """Everything, under the name it has in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding()
        self.encoder = Encoder()
        self.output_layer = nn.Linear(WIDTH, SIZE, bias=False)


class LanguageModel(nn.Module):
    """Logits of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Transformer()
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into_stream = name.endswith(("dense.weight", "4h_to_h.weight"))
                nn.init.normal_(parameter, 0, 0.02 / math.sqrt(2 * NUM_LAYERS) if into_stream else 0.02)

    def forward(
        self, ids: torch.Tensor, start: int = 0, caches: list[list[torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """Ids [B, T] that begin at a place -> [B, T, vocabulary]; with caches, one a layer, what
        came before is seen.
        """
        transformer = self.transformer
        x = F.dropout(transformer.embedding.word_embeddings(ids), DROPOUT, self.training)
        rates = 10000.0 ** (-torch.arange(0, ROPE_WIDTH, 2) / ROPE_WIDTH)
        angles = torch.arange(start, start + ids.shape[1])[:, None] * rates
        rope = (angles.cos(), angles.sin())
        for index, layer in enumerate(transformer.encoder.layers):
            x = layer(x, rope, None if caches is None else caches[index])
        return transformer.output_layer(transformer.encoder.final_layernorm(x))
