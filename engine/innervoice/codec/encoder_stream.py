"""The flow's token encoder over a stream: keys and values of whole blocks are kept, the open block is encoded again.

A token sees its own block and the `blocks` before it: exact for any cutting, and the offline encoder itself as long as a reply is
no longer than that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.flow_encoder import EncoderLayer, FlowEncoder, relative_positions
from innervoice.codec.layers import layer_norm, linear
from innervoice.codec.streaming import State
from innervoice_kernels.conv import shifted
from innervoice_kernels.relative import relative_attention


class EncoderStream:
    """The encoder with a cache of `blocks` blocks; a call brings at most max_tokens tokens a row."""

    def __init__(self, encoder: FlowEncoder, blocks: int, max_tokens: int, device: torch.device | str) -> None:
        self._encoder, self._blocks, self.max_tokens = encoder, blocks, max_tokens
        self._block_size = encoder.config.block_size
        self.cache_len = blocks * self._block_size
        width, heads = encoder.config.width, encoder.config.num_heads
        table = relative_positions(self.cache_len + max_tokens, width, device)[: self.cache_len + 2 * max_tokens - 1]
        self._positions = [
            F.linear(table.to(layer.position), layer.position).view(len(table), heads, -1).transpose(0, 1)
            for layer in encoder.layers
        ]  # [H, cache + 2 max_tokens - 1, d], by falling distance

    def __call__(self, x: Tensor, state: State, n: Tensor, start: Tensor, closed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, max_tokens, D_in] embedded -> states [B, max_tokens, D], state'.

        Row b brings n[b] tokens from index start[b], a block's first; the first closed[b] of them, whole blocks, are kept.
        """
        visible = self._visible(n, start)
        x, after = self._encoder.enter(x), {}
        for index, layer in enumerate(self._encoder.layers):
            name = f"encoder.{index}"
            attended, after[name] = self._attend(layer_norm(x, layer.norm_attention), state.get(name), closed, visible, index)
            x = layer.feed_forward(x + attended)
        return self._encoder.leave(x), after

    def _attend(self, x: Tensor, cache: Tensor | None, closed: Tensor, visible: Tensor, index: int) -> tuple[Tensor, Tensor]:
        layer: EncoderLayer = self._encoder.layers[index]
        rows, tokens, heads = x.shape[0], x.shape[1], self._encoder.config.num_heads
        q, k, v = linear(x, layer.qkv).view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, U, d] each
        new = torch.stack([k, v], 1).transpose(-1, -2)  # [B, 2, H, d, U]
        if cache is None:
            cache = new.new_zeros(*new.shape[:-1], self.cache_len)
        both = torch.cat([cache, new], -1)  # [B, 2, H, d, cache + U]
        k, v = both.transpose(-1, -2).unbind(1)
        y = relative_attention(q, k, v, layer.bias_u, layer.bias_v, self._positions[index], visible)
        return linear(y.transpose(1, 2).reshape(rows, tokens, -1), layer.out), shifted(both, closed, self.cache_len)

    def _visible(self, n: Tensor, start: Tensor) -> Tensor:
        """Which key (cached, then new) a new token sees: [B, max_tokens, cache + max_tokens]."""
        query = torch.arange(self.max_tokens, device=n.device)[:, None]
        key = torch.arange(-self.cache_len, self.max_tokens, device=n.device)  # both relative to start
        ahead = query // self._block_size - key // self._block_size
        near = (ahead >= 0) & (ahead <= self._blocks)
        return near & (key + start[:, None, None] >= 0) & (key < n[:, None, None])
