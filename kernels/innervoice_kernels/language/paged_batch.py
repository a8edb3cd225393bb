"""The arguments of paged attention, checked once and handed to whichever kernel runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels.language.kvstore import check_pages
from innervoice_kernels.language.kvstore_fp8 import check_scales


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Queries of a ragged batch and the pages that they attend over; shapes as paged_attention_ref gives
    them.
    """

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    query_start: Tensor
    context_len: Tensor
    scale: float
    tags: tuple[Tensor, Tensor, Tensor] | None = None
    """query_tag, key_tag and log_weight of a reflection weight."""
    scales: tuple[Tensor, Tensor] | None = None
    """k_scale and v_scale of fp8 pages."""

    @property
    def num_rows(self) -> int:
        """B, the sequences of the batch."""
        return len(self.context_len)

    @property
    def num_tokens(self) -> int:
        """T, the queries of all rows."""
        return len(self.q)

    @property
    def heads(self) -> int:
        """H, the query heads."""
        return self.q.shape[1]

    @property
    def width(self) -> int:
        """D, the width of a head."""
        return self.q.shape[2]

    @property
    def groups(self) -> int:
        """G, the heads of keys and values."""
        return self.k_pages.shape[2]

    @property
    def page_size(self) -> int:
        """S, the tokens of a page."""
        return self.k_pages.shape[1]

    @property
    def max_context(self) -> int:
        """The most tokens that a row of the page table holds."""
        return self.page_table.shape[1] * self.page_size

    def pointers(self) -> tuple[Tensor, ...]:
        """The tensors that both kernels take, in their order; any tensor stands in for an absent one."""
        absent = self.context_len
        query_tag, key_tag, log_weight = self.tags or (absent, absent, absent)
        k_scale, v_scale = self.scales or (absent, absent)
        rows = (self.page_table, self.query_start, self.context_len)
        return (self.q, self.k_pages, self.v_pages, *rows, query_tag, key_tag, log_weight, k_scale, v_scale)

    def strides(self) -> tuple[int, ...]:
        """The strides that both kernels take, in their order: of queries, page table, pages and key tags."""
        key_tag = self.context_len if self.tags is None else self.tags[1]
        table_row = self.page_table.stride(0)
        return (*self.q.stride()[:2], table_row, *self.k_pages.stride()[:3], key_tag.stride(0))

    def check(self) -> None:
        """Raise ValueError where a type, shape or stride is not what the kernels read."""
        check_pages("paged_attention", self.k_pages, self.v_pages)
        if self.scales is not None:
            check_scales("paged_attention", self.k_pages, *self.scales)
        q, pages = self.q, self.k_pages
        expected = q.dtype if self.scales is None else torch.float8_e4m3fn
        fits = self.width == pages.shape[3] and self.heads % self.groups == 0
        if pages.dtype != expected or not fits or (self.width > 1 and q.stride(2) != 1):
            raise ValueError(
                f"paged_attention: q is {q.dtype} {tuple(q.shape)} with strides {q.stride()}, the pages are "
                f"{pages.dtype} {tuple(pages.shape)}: expected pages of {expected}, [T, H, D] with contiguous "
                "vectors and [P, S, G, D], H a multiple of G"
            )
        for name in ("page_table", "query_start", "context_len"):
            x = getattr(self, name)
            if x.dtype != torch.int32 or (x.numel() > 1 and x.stride(-1) != 1):
                raise ValueError(
                    f"paged_attention: {name} is {x.dtype} with strides {x.stride()}, expected contiguous int32"
                )
