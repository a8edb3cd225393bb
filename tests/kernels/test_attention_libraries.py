"""Attention by other libraries: what they are given, by stand-ins that compute from it; what they refuse; how they are chosen."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from innervoice_kernels import backend
from innervoice_kernels.backend import choose, use
from innervoice_kernels.language import attention_libraries as libraries
from innervoice_kernels.language.attention import paged_attention_ref
from innervoice_kernels.language.paged_batch import PagedBatch
from innervoice_kernels.testing import CASES


def batch_of(case: str, dtype: torch.dtype = torch.bfloat16) -> tuple[PagedBatch, Tensor]:
    """A case without its weight, and what the reference makes of it."""
    inputs = next(c for c in CASES["paged_attention"] if c.name == case).make_inputs(
        dtype, "cpu", torch.Generator().manual_seed(1)
    )
    plain = {k: v for k, v in inputs.items() if k not in ("query_tag", "key_tag", "log_weight")}
    return PagedBatch(**plain), paged_attention_ref(**plain)


class Wrapper:
    """FlashInfer's paged prefill, as its documentation describes it, by the reference."""

    plans = 0

    def __init__(self, scratch: Tensor, layout: str) -> None:
        assert scratch.dtype == torch.uint8 and layout == "NHD"

    def plan(
        self, qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor, last_page_len: Tensor, heads: int, groups: int,
        width: int, page_size: int, *, causal: bool, sm_scale: float, q_data_type: torch.dtype, kv_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        type(self).plans += 1
        assert (
            causal
            and q_data_type == kv_data_type
            and all(x.dtype == torch.int32 for x in (qo_indptr, kv_indptr, kv_indices))
        )
        counts = (kv_indptr[1:] - kv_indptr[:-1]).tolist()
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, count in enumerate(counts):
            table[row, :count] = kv_indices[kv_indptr[row] : kv_indptr[row + 1]]
        lengths = torch.tensor([(n - 1) * page_size for n in counts], dtype=torch.int32) + last_page_len
        self._batch = (table, qo_indptr, lengths.int(), sm_scale)

    def run(self, q: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
        return paged_attention_ref(q, *pages, *self._batch)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    softmax_scale: float, causal: bool, block_table: Tensor,
) -> Tensor:  # fmt: skip
    lengths = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
    assert (
        causal
        and max_seqlen_k == lengths.max()
        and max_seqlen_q == (cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max()
    )
    return paged_attention_ref(q, k, v, block_table, cu_seqlens_q, lengths, softmax_scale)


def flash_attn_with_kvcache(
    q: Tensor, k: Tensor, v: Tensor, *, cache_seqlens: Tensor, page_table: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int,
    softmax_scale: float, causal: bool,
) -> tuple[Tensor, None]:  # fmt: skip
    assert causal and max_seqlen_q >= 1
    return paged_attention_ref(q, k, v, page_table, cu_seqlens_q, cache_seqlens, softmax_scale), None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Stand-ins for the libraries, and the names of those that are found."""
    present: set[str] = set()
    parts: dict[str, dict[str, Any]] = {
        "flashinfer": {"BatchPrefillWithPagedKVCacheWrapper": Wrapper},
        "flash_attn": {"flash_attn_varlen_func": flash_attn_varlen_func},
        "flash_attn_interface": {"flash_attn_with_kvcache": flash_attn_with_kvcache},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    find = libraries.importlib.util.find_spec
    monkeypatch.setattr(
        libraries.importlib.util,
        "find_spec",
        lambda name, *rest: (name in present or None) if name in parts else find(name, *rest),
    )
    libraries._say_once.cache_clear()
    libraries._planned.cache_clear()
    return present


@pytest.mark.parametrize("case", ["mixed", "decode", "prefill"])
@pytest.mark.parametrize(
    ("name", "module"), [("flashinfer", "flashinfer"), ("flash_attn", "flash_attn_interface")]
)
def test_libraries_are_given_the_batch(installed: set[str], case: str, name: str, module: str) -> None:
    installed.add(module)
    batch, expected = batch_of("mixed, weighted" if case == "mixed" else case)
    result = libraries.attend(name, batch, is_captured=False)
    assert result is not None
    owned = slice(0, int(batch.query_start[-1]))
    assert torch.equal(result[owned], expected[owned])


def test_flash_attn_2_is_given_pages_of_256(installed: set[str]) -> None:
    installed.add("flash_attn")
    batch, expected = batch_of("decode")
    assert "pages of 256 tokens, these have" in str(libraries.refusal("flash_attn", batch, False))
    size, length = batch.k_pages.shape[1], int(batch.context_len.max())
    wide = torch.zeros(len(batch.context_len), 256, *batch.k_pages.shape[2:], dtype=batch.q.dtype)
    pages = [wide.clone(), wide.clone()]
    for row, tokens in enumerate(batch.context_len.tolist()):
        for t in range(tokens):
            at = batch.page_table[row, t // size], t % size
            pages[0][row, t], pages[1][row, t] = batch.k_pages[at], batch.v_pages[at]
    assert length <= 256
    table = torch.arange(len(wide), dtype=torch.int32)[:, None]
    result = libraries.attend(
        "flash_attn",
        replace(batch, k_pages=pages[0], v_pages=pages[1], page_table=table),
        is_captured=False,
    )
    assert result is not None and torch.equal(result, expected)


def test_layers_of_one_pass_share_a_plan(installed: set[str]) -> None:
    installed.add("flashinfer")
    batch, _ = batch_of("decode")
    before = Wrapper.plans
    for _ in range(3):
        libraries.attend("flashinfer", batch, is_captured=False)
    other = replace(batch, context_len=batch.context_len.clone())
    libraries.attend("flashinfer", other, is_captured=False)
    assert Wrapper.plans == before + 2


@pytest.mark.parametrize(
    ("dtype", "is_tagged", "is_captured", "reason"),
    [
        (torch.bfloat16, True, False, "no reflection weight"),
        (torch.bfloat16, False, True, "captured graph"),
        (torch.float32, False, False, "not torch.float32"),
    ],
)
def test_what_they_cannot_run_is_logged_once(
    installed: set[str],
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    is_tagged: bool,
    is_captured: bool,
    reason: str,
) -> None:
    installed.add("flashinfer")
    batch, _ = batch_of("decode", dtype)
    if is_tagged:
        batch = replace(batch, tags=(torch.empty(0),) * 3)
    with caplog.at_level(logging.WARNING, logger="innervoice.kernels"):
        for _ in range(2):
            assert libraries.attend("flashinfer", batch, is_captured=is_captured) is None
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_a_library_is_chosen_for_attention_alone(
    installed: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(ValueError, match=r"no implementation 'flashinfer'; there are ref, triton, native$"),
        use("flashinfer"),
    ):
        pass
    with pytest.raises(ValueError, match="no implementation 'flash_attn'"), use(rms_norm="flash_attn"):
        pass
    with (
        use(paged_attention="flashinfer"),
        pytest.raises(ValueError, match="not installed: pip install flashinfer-python"),
    ):
        choose("paged_attention", torch.zeros(1))
    installed.add("flashinfer")
    with (
        use(paged_attention="flashinfer"),
        pytest.raises(ValueError, match="tensors on cpu: it runs on cuda alone"),
    ):
        choose("paged_attention", torch.zeros(1))
    with caplog.at_level(logging.INFO, logger="innervoice.kernels"):
        choice = backend._Choice({"paged_attention": "flashinfer"})
        assert choice.resolve("paged_attention", torch.device("cuda"), False) == "flashinfer"
    assert caplog.records[-1].getMessage() == "paged_attention on cuda: flashinfer"
