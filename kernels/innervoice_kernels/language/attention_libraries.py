"""Paged attention by other people's kernels, where they are installed and can run a
call: flash-attn and FlashInfer.

They are found at run time and chosen by name alone: INNERVOICE_BACKEND=paged_attention=flashinfer, or
`with use(paged_attention="flash_attn")`. What they cannot run (a reflection weight, float32, a captured
graph, pages of a size that they do not read) stays with the project's own kernel, and is logged once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.language.paged_batch import PagedBatch

_log = logging.getLogger("innervoice.kernels")
_HALVES = (torch.bfloat16, torch.float16)
_FA2_PAGE = 256  # flash-attn 2 reads pages of this size and its multiples
_SCRATCH = 128 << 20


def refusal(name: str, batch: PagedBatch, is_captured: bool) -> str | None:
    """Return why a library cannot run a batch, or None where it can.

    is_captured: the call may become part of a graph.
    """
    if batch.tags is not None:
        return "it knows no reflection weight"
    if is_captured:
        return "it plans on the host, which a captured graph cannot"
    if batch.q.dtype not in _HALVES:
        return f"it takes bfloat16 and float16, not {batch.q.dtype}"
    if batch.k_pages.dtype != batch.q.dtype:
        return f"the pages hold {batch.k_pages.dtype} with scales"
    page_size = batch.k_pages.shape[1]
    if name == "flash_attn" and not _has("flash_attn_interface") and page_size % _FA2_PAGE:
        return f"flash-attn 2 reads pages of {_FA2_PAGE} tokens, these have {page_size}"
    return None


def attend(name: str, batch: PagedBatch, *, is_captured: bool) -> Tensor | None:
    """Return the result of a library, or None where it cannot run the batch: each reason is logged once."""
    reason = refusal(name, batch, is_captured)
    if reason is not None:
        _say_once(name, reason)
        return None
    return _RUN[name](batch)


@cache
def _say_once(name: str, reason: str) -> None:
    _log.warning("paged_attention: %s was chosen, the own kernel runs: %s", name, reason)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _flash_attn(batch: PagedBatch) -> Tensor:
    """flash-attn 3 where it is installed, else 2.

    Dao, "FlashAttention-2", 2023; Shah et al., "FlashAttention-3", 2024.
    """
    most = int((batch.query_start[1:] - batch.query_start[:-1]).max())
    if _has("flash_attn_interface"):
        module = importlib.import_module("flash_attn_interface")
        result = module.flash_attn_with_kvcache(
            batch.q, batch.k_pages, batch.v_pages, cache_seqlens=batch.context_len,
            page_table=batch.page_table, cu_seqlens_q=batch.query_start, max_seqlen_q=most,
            softmax_scale=batch.scale, causal=True,
        )  # fmt: skip
    else:
        lengths = torch.nn.functional.pad(batch.context_len.cumsum(0, dtype=torch.int32), (1, 0))
        module = importlib.import_module("flash_attn")
        result = module.flash_attn_varlen_func(
            batch.q, batch.k_pages, batch.v_pages, cu_seqlens_q=batch.query_start, cu_seqlens_k=lengths,
            max_seqlen_q=most, max_seqlen_k=int(batch.context_len.max()), softmax_scale=batch.scale,
            causal=True, block_table=batch.page_table,
        )  # fmt: skip
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y


class _Planned:
    """FlashInfer's wrapper with the plan of the last batch, which all layers of a pass share.

    Ye et al., "FlashInfer", 2025.
    """

    def __init__(self, device: torch.device) -> None:
        module = importlib.import_module("flashinfer")
        scratch = torch.empty(_SCRATCH, dtype=torch.uint8, device=device)
        self._wrapper = module.BatchPrefillWithPagedKVCacheWrapper(scratch, "NHD")
        self._planned: tuple[Any, ...] = ()

    def run(self, batch: PagedBatch) -> Tensor:
        """Plan where the batch is another one than that of the last call, by the identity of its tensors; then run."""
        rows = (batch.page_table, batch.query_start, batch.context_len)
        if len(self._planned) != len(rows) or any(
            a is not b for a, b in zip(self._planned, rows, strict=True)
        ):
            self._plan(batch)
            self._planned = rows
        result: Tensor = self._wrapper.run(batch.q, (batch.k_pages, batch.v_pages))
        return result

    def _plan(self, batch: PagedBatch) -> None:
        page_size, groups, width = batch.k_pages.shape[1:]
        pages = (batch.context_len + page_size - 1) // page_size
        starts = torch.nn.functional.pad(pages.cumsum(0, dtype=torch.int32), (1, 0))
        held = (
            torch.arange(batch.page_table.shape[1], device=pages.device, dtype=torch.int64)[None, :]
            < pages[:, None]
        )
        last = batch.context_len - (pages - 1) * page_size
        self._wrapper.plan(
            batch.query_start, starts, batch.page_table[held], last, batch.q.shape[1], groups, width,
            page_size, causal=True, sm_scale=batch.scale, q_data_type=batch.q.dtype,
            kv_data_type=batch.k_pages.dtype,
        )  # fmt: skip


@cache
def _planned(device: torch.device) -> _Planned:
    return _Planned(device)


_RUN: dict[str, Callable[[PagedBatch], Tensor]] = {
    "flash_attn": _flash_attn,
    "flashinfer": lambda batch: _planned(batch.q.device).run(batch),
}
