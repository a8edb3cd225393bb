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
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("innervoice.kernels")
_HALVES = (torch.bfloat16, torch.float16)
_FA2_PAGE = 256  # flash-attn 2 reads pages of this size and its multiples
_SCRATCH = 128 << 20


@dataclass(frozen=True)
class Call:
    """The arguments of paged_attention that a library is given."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    query_start: Tensor
    context_len: Tensor
    scale: float
    weighted: bool
    captured: bool


def refusal(name: str, call: Call) -> str | None:
    """The reason why a library cannot run a call, None: it can."""
    if call.weighted:
        return "it knows no reflection weight"
    if call.captured:
        return "it plans on the host, which a captured graph cannot"
    if call.q.dtype not in _HALVES:
        return f"it takes bfloat16 and float16, not {call.q.dtype}"
    if call.k_pages.dtype != call.q.dtype:
        return f"the pages hold {call.k_pages.dtype} with scales"
    page_size = call.k_pages.shape[1]
    if name == "flash_attn" and not _has("flash_attn_interface") and page_size % _FA2_PAGE:
        return f"flash-attn 2 reads pages of {_FA2_PAGE} tokens, these have {page_size}"
    return None


def attend(name: str, call: Call) -> Tensor | None:
    """The result of a library, or None where it cannot run the call: that is logged once for a reason."""
    reason = refusal(name, call)
    if reason is not None:
        _say_once(name, reason)
        return None
    return _RUN[name](call)


@cache
def _say_once(name: str, reason: str) -> None:
    _log.warning("paged_attention: %s was chosen, the own kernel runs: %s", name, reason)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _flash_attn(call: Call) -> Tensor:
    """flash-attn 3 where it is installed, else 2.

    Dao, "FlashAttention-2", 2023; Shah et al., "FlashAttention-3", 2024.
    """
    most = int((call.query_start[1:] - call.query_start[:-1]).max())
    if _has("flash_attn_interface"):
        module = importlib.import_module("flash_attn_interface")
        result = module.flash_attn_with_kvcache(
            call.q, call.k_pages, call.v_pages, cache_seqlens=call.context_len, page_table=call.page_table,
            cu_seqlens_q=call.query_start, max_seqlen_q=most, softmax_scale=call.scale, causal=True,
        )  # fmt: skip
    else:
        lengths = torch.nn.functional.pad(call.context_len.cumsum(0, dtype=torch.int32), (1, 0))
        module = importlib.import_module("flash_attn")
        result = module.flash_attn_varlen_func(
            call.q, call.k_pages, call.v_pages, cu_seqlens_q=call.query_start, cu_seqlens_k=lengths, max_seqlen_q=most,
            max_seqlen_k=int(call.context_len.max()), softmax_scale=call.scale, causal=True, block_table=call.page_table,
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

    def run(self, call: Call) -> Tensor:
        """Plan where the batch is another one than that of the last call, told by its
        tensors themselves; then run.
        """
        batch = (call.page_table, call.query_start, call.context_len)
        if len(self._planned) != len(batch) or any(
            a is not b for a, b in zip(self._planned, batch, strict=True)
        ):
            self._plan(call)
            self._planned = batch
        result: Tensor = self._wrapper.run(call.q, (call.k_pages, call.v_pages))
        return result

    def _plan(self, call: Call) -> None:
        page_size, groups, width = call.k_pages.shape[1:]
        pages = (call.context_len + page_size - 1) // page_size
        starts = torch.nn.functional.pad(pages.cumsum(0, dtype=torch.int32), (1, 0))
        held = torch.arange(call.page_table.shape[1], device=pages.device)[None, :] < pages[:, None]
        last = call.context_len - (pages - 1) * page_size
        self._wrapper.plan(
            call.query_start, starts, call.page_table[held], last, call.q.shape[1], groups, width, page_size, causal=True,
            sm_scale=call.scale, q_data_type=call.q.dtype, kv_data_type=call.k_pages.dtype,
        )  # fmt: skip


@cache
def _planned(device: torch.device) -> _Planned:
    return _Planned(device)


_RUN: dict[str, Callable[[Call], Tensor]] = {
    "flash_attn": _flash_attn,
    "flashinfer": lambda call: _planned(call.q.device).run(call),
}
