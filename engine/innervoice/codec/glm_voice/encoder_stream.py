"""The flow's token encoder over a stream: keys and values of whole blocks are kept, the
open block is encoded again.

A token sees its own block and the `blocks` before it: exact for any cutting, and the offline encoder itself
as long as a reply is no longer than that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.glm_voice.flow_encoder import EncoderLayer, FlowEncoder, relative_positions
from innervoice.codec.layers import Affine
from innervoice.codec.streaming import StreamState
from innervoice_kernels.speech_codec.relative_layer import RelativeLayer, relative_layer


class EncoderStream:
    """The encoder with a cache of `blocks` blocks; a call brings at most max_tokens tokens a row."""

    def __init__(
        self, encoder: FlowEncoder, blocks: int, max_tokens: int, device: torch.device | str
    ) -> None:
        self._encoder = encoder
        self._blocks = blocks
        self.max_tokens = max_tokens
        self._block_size, self._width = encoder.config.block_size, encoder.config.width
        self.cache_len = blocks * self._block_size
        table = relative_positions(self.cache_len + max_tokens, self._width, device)[
            : self.cache_len + 2 * max_tokens - 1
        ]
        self._layers = [
            _layer(layer, table.to(layer.position), encoder.config.num_heads) for layer in encoder.layers
        ]

    def __call__(
        self, x: Tensor, state: StreamState, n: Tensor, start: Tensor, closed: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, max_tokens, D_in] embedded -> states [B, max_tokens, D], state': keys and values
        [B, cache, 2, D] of each layer.

        Row b brings n[b] tokens from index start[b], a block's first; the first closed[b] of
        them, whole blocks, are kept.
        """
        visible = self._visible(n, start)
        x, after = self._encoder.enter(x), {}
        for index, layer in enumerate(self._layers):
            name = f"encoder.{index}"
            cache = state.get(name)
            if cache is None:
                cache = x.new_zeros(len(x), self.cache_len, 2, self._width)
            x, after[name] = relative_layer(x, cache, layer, visible, closed)
        return self._encoder.leave(x), after

    def _visible(self, n: Tensor, start: Tensor) -> Tensor:
        """Which key (cached, then new) a new token sees: [B, max_tokens, cache + max_tokens]."""
        query = torch.arange(self.max_tokens, device=n.device, dtype=torch.int64)[:, None]
        key = torch.arange(
            -self.cache_len, self.max_tokens, device=n.device, dtype=torch.int64
        )  # both relative to start
        ahead = query // self._block_size - key // self._block_size
        near = (ahead >= 0) & (ahead <= self._blocks)
        return near & (key + start[:, None, None] >= 0) & (key < n[:, None, None])


def _layer(layer: EncoderLayer, table: Tensor, heads: int) -> RelativeLayer:
    """table [cache + 2 max_tokens - 1, D]: sinusoids by falling distance."""

    def pair(part: Affine) -> tuple[Tensor, Tensor]:
        assert part.bias is not None
        return part.weight, part.bias

    return RelativeLayer(
        norm=pair(layer.norm_attention),
        qkv=pair(layer.qkv),
        bias_u=layer.bias_u,
        bias_v=layer.bias_v,
        out=pair(layer.out),
        norm_ffn=pair(layer.norm_ffn),
        up=pair(layer.up),
        down=pair(layer.down),
        positions=F.linear(table, layer.position).view(len(table), heads, -1).transpose(0, 1).contiguous(),
    )
