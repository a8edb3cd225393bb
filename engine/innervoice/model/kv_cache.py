"""The paged KV cache: keys and values of all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.lazy_zeros import zeros
from innervoice_kernels.language.kvstore import store_kv
from innervoice_kernels.language.kvstore_fp8 import store_kv_fp8


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of all layers in pages, and for each place the reply
    whose reflection it holds, or 0.

    Pages of float8_e4m3fn have a scale a page and head.
    """

    k: Tensor  # [L, P, page_size, G, head_dim]
    v: Tensor
    key_tag: Tensor  # [P, page_size] int32
    k_scale: Tensor | None = None  # [L, P, G] float32
    v_scale: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
    ) -> KVCache:
        """Allocate a cache of empty pages, which on a CPU take memory when they are first written.

        Raises MemoryError where the host has no room for them.
        """
        shape = (config.num_layers, num_pages, page_size, config.num_kv_heads, config.head_dim)
        k, v = (zeros(shape, dtype, device) for _ in range(2))
        tag = torch.zeros(num_pages, page_size, dtype=torch.int32, device=device)
        if dtype != torch.float8_e4m3fn:
            return cls(k, v, tag)
        scales = (torch.zeros(*shape[:2], shape[3], dtype=torch.float32, device=device) for _ in range(2))
        return cls(k, v, tag, *scales)

    def store(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Write the keys and values [T, G, head_dim] of a layer's new tokens."""
        pages = (self.k[layer], self.v[layer])
        if self.k_scale is None or self.v_scale is None:
            store_kv(k, v, *pages, slots)
        else:
            store_kv_fp8(k, v, *pages, self.k_scale[layer], self.v_scale[layer], slots)

    def tag(self, slots: Tensor, tags: Tensor) -> None:
        """Note for tokens at slots [T] int64 the reply whose reflection each holds, tags [T] int32."""
        if self.key_tag.device.type == "cpu":  # by NumPy, which is ready for few numbers sooner
            self.key_tag.numpy().reshape(-1)[slots.numpy()] = tags.numpy()
        else:
            self.key_tag.view(-1)[slots] = tags

    def copy_page(self, source: int, target: int) -> None:
        """Copy what one page holds of all layers to another."""
        for pages in (self.k, self.v, self.k_scale, self.v_scale):
            if pages is not None:
                pages[:, target] = pages[:, source]
        self.key_tag[target] = self.key_tag[source]

    def take(self, pages: Tensor) -> KVCache:
        """A copy of some pages on the host. pages [P'] int64."""
        k, v, *scales = (
            None if held is None else held.index_select(1, pages).cpu() for held in self._paged()
        )
        assert k is not None and v is not None
        return KVCache(_like(self.k, k), _like(self.v, v), self.key_tag[pages].cpu(), *scales)

    def put(self, pages: Tensor, taken: KVCache, first: int) -> None:
        """Write what `take` gave, from its page `first` on, into these pages."""
        for target, source in zip(self._paged(), taken._paged(), strict=True):
            if target is not None and source is not None:
                target.index_copy_(1, pages, source[:, first:].to(target.device))
        self.key_tag[pages] = taken.key_tag[first:].to(self.key_tag.device)

    def _paged(self) -> list[Tensor | None]:
        """What has a page in its second dimension; float8 as bytes, which alone can be indexed everywhere."""
        held = (self.k, self.v, self.k_scale, self.v_scale)
        return [one if one is None or one.element_size() > 1 else one.view(torch.uint8) for one in held]


def _like(held: Tensor, taken: Tensor) -> Tensor:
    return taken if taken.dtype == held.dtype else taken.view(held.dtype)
