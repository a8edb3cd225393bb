"""Cases of attention over pages, and of pages of fp8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.language import attention, kvstore, kvstore_fp8, step_attention
from innervoice_kernels.testing.case import (
    Case,
    DeviceName,
    Inputs,
    Op,
    OpOutputs,
    fresh,
    normal,
    num_bytes,
    on_host,
    rows,
)
from innervoice_kernels.testing.language import QKV, into, qkv_inputs, store_traffic


def _attention_case(
    name: str,
    shape: tuple[tuple[int, int], ...],
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    page_size: int = 16,
    weight: bool = False,
    skip: int = 0,
) -> Case:
    """shape: (number of queries, context length) of each row. Pages lie shuffled; what no row uses is NaN."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        counts = [-(-length // page_size) for _, length in shape]
        num_pages = sum(counts) + 1
        order = torch.randperm(num_pages, generator=on_host(generator), dtype=torch.int64, device="cpu")
        table = torch.zeros(len(shape), max(counts, default=0), dtype=torch.int32, device="cpu")
        k_pages, v_pages = (
            fresh(num_pages, page_size, groups, width, dtype=dtype, device=device) for _ in range(2)
        )
        taken = 0
        for row, ((_, length), count) in enumerate(zip(shape, counts, strict=True)):
            table[row, :count] = order[taken : taken + count]
            taken += count
            slots = (
                (
                    table[row, :count, None].long() * page_size
                    + torch.arange(page_size, dtype=torch.int64, device="cpu")
                )
                .flatten()[:length]
                .to(device)
            )
            keys, values = (
                normal(length, groups, width, dtype=dtype, device=device, generator=generator)
                for _ in range(2)
            )
            kvstore.store_kv_ref(keys, values, k_pages, v_pages, slots)
        counts_of_rows = [0, *(queries for queries, _ in shape)]
        starts = torch.tensor(counts_of_rows, dtype=torch.int64, device="cpu").cumsum(0).int()
        q = rows(int(starts[-1]), heads * width, dtype=dtype, device=device, generator=generator, skip=skip)
        inputs: Inputs = {
            "q": torch.unflatten(q, -1, (heads, width)), "k_pages": k_pages, "v_pages": v_pages,
            "page_table": table.to(device), "query_start": starts.to(device),
            "context_len": torch.tensor([n for _, n in shape], dtype=torch.int32, device="cpu").to(device),
            "scale": width**-0.5,
        }  # fmt: skip
        if weight:
            inputs["query_tag"] = torch.randint(
                0, 3, (len(q),), generator=on_host(generator), dtype=torch.int32, device="cpu"
            ).to(device)
            inputs["key_tag"] = torch.randint(
                0, 3, (num_pages, page_size), generator=on_host(generator), dtype=torch.int32, device="cpu"
            ).to(device)
            inputs["log_weight"] = (
                0.5 * torch.rand(len(q), generator=on_host(generator), dtype=torch.float32, device="cpu")
            ).to(device)
        return inputs

    return Case(name, make)


def _fp8_attention_case(name: str, shape: tuple[tuple[int, int], ...], **more: Any) -> Case:
    """The same with pages of fp8, whose values are of very different size from page to page."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        inputs = _attention_case(name, shape, **more).make_inputs(dtype, device, generator)
        for x in ("k", "v"):
            pages = inputs[f"{x}_pages"]
            inputs[f"{x}_pages"] = (pages.float() * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
            powers = torch.randint(
                -8,
                -5,
                (pages.shape[0], pages.shape[2]),
                generator=on_host(generator),
                dtype=torch.int64,
                device="cpu",
            )
            inputs[f"{x}_scale"] = torch.exp2(powers.float()).to(device)
        return inputs

    return Case(name, make)


def _step_case(
    name: str,
    lengths: tuple[int, ...],
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    rotated: int = 8,
    page_size: int = 16,
    weight: bool = False,
    skip: int = 0,
    **more: bool,
) -> Case:
    """Rows of one token each, after which they have so many; 0: the row takes no part. The new token's place is NaN."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        shape = tuple((1, length) for length in lengths)
        paged = _attention_case(name, shape, heads, groups, width, page_size, weight)
        inputs = paged.make_inputs(dtype, device, generator)
        del inputs["q"], inputs["query_start"]
        if weight:
            inputs["tags"] = tuple(inputs.pop(key) for key in ("query_tag", "key_tag", "log_weight"))
        for row, length in enumerate(lengths):
            if length:
                page = inputs["page_table"][row, (length - 1) // page_size].long()
                for pages in (inputs["k_pages"], inputs["v_pages"]):
                    pages[page, (length - 1) % page_size] = float("nan")
        made = qkv_inputs(
            len(lengths), heads, groups, width, rotated, dtype, device, generator, skip=skip, **more
        )
        out = torch.zeros(len(lengths), heads, width, dtype=dtype, device=device)
        return inputs | made | {"out": out}

    return Case(name, make)


def _step_traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """Queries, keys and values of the tokens once, results once, the keys and values of all rows once."""
    keys = int(inputs["context_len"].sum()) * 2 * num_bytes(inputs["k_pages"][0, 0])
    return keys + num_bytes(inputs["qkv"], inputs["cos"], inputs["sin"], inputs["page_table"], outputs[0])


def _fp8_store_case(
    name: str,
    runs: tuple[tuple[int, int], ...],
    groups: int,
    width: int,
    pages: int,
    page_size: int,
    idle: int = 0,
    skip: int = 0,
) -> Case:
    """runs: (first slot, tokens), one after the other; behind them idle tokens. What is in the pages may have
    to be divided.
    """

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        slots = torch.cat(
            [
                *(
                    torch.arange(first, first + count, dtype=torch.int64, device="cpu")
                    for first, count in runs
                ),
                torch.full((idle,), -1, dtype=torch.int64, device="cpu"),
            ]
        )
        wide = [
            rows(len(slots), groups * width, dtype=dtype, device=device, generator=generator, skip=skip)
            for _ in range(2)
        ]
        sizes = (
            torch.exp2(
                torch.randint(
                    -3, 4, (len(slots), 1), generator=on_host(generator), dtype=torch.int64, device="cpu"
                ).float()
            )
            .to(dtype)
            .to(device)
        )
        k, v = (torch.unflatten(x * sizes, -1, (groups, width)) for x in wide)
        held, scales = [], []
        for _ in range(2):
            numbers = torch.randint(
                -448,
                449,
                (pages, page_size, groups, width),
                generator=generator,
                dtype=torch.int64,
                device=generator.device,
            ).float()
            held.append(numbers.to(torch.float8_e4m3fn).to(device))
            scales.append(
                torch.exp2(
                    torch.randint(
                        -10,
                        -6,
                        (pages, groups),
                        generator=on_host(generator),
                        dtype=torch.int64,
                        device="cpu",
                    ).float()
                ).to(device)
            )
        return {
            "k": k, "v": v, "k_pages": held[0], "v_pages": held[1], "k_scale": scales[0],
            "v_scale": scales[1], "slots": slots.long().to(device),
        }  # fmt: skip

    return Case(name, make)


def _attention_traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """Queries and results once, the keys and values (and tags) of rows that have queries once, the tables
    once.
    """
    k_pages: Tensor = inputs["k_pages"]
    active = inputs["query_start"].diff() > 0
    keys = int(inputs["context_len"][active].sum())
    a_key = 2 * num_bytes(k_pages[0, 0]) + (0 if inputs.get("key_tag") is None else 4)
    small = [
        inputs[name]
        for name in ("page_table", "query_start", "context_len", "query_tag", "log_weight")
        if name in inputs
    ]
    return keys * a_key + num_bytes(inputs["q"], *small, *outputs)


_MIXED = ((1, 37), (5, 5), (3, 61), (0, 9), (1, 1), (17, 33))  # decode, prefill, chunk, inactive row


OPS = (
    Op("store_kv_fp8", kvstore_fp8.store_kv_fp8, kvstore_fp8.store_kv_fp8_ref, (
        _fp8_store_case("one", ((0, 1),), 1, 1, 1, 1),
        _fp8_store_case("primes", ((5, 13), (29, 3)), 3, 7, 5, 11),
        _fp8_store_case("prefill", ((16, 40),), 2, 128, 5, 16, skip=64),
        _fp8_store_case("idle", ((7, 1), (12, 1)), 2, 16, 2, 8, idle=2),
        _fp8_store_case("empty", (), 2, 16, 1, 16),
    ), real=(
        _fp8_store_case("decode", ((1027, 1),), 2, 128, 129, 16),
        _fp8_store_case("prefill 512", ((64, 512),), 2, 128, 129, 16),
    ), mutates=("k_pages", "v_pages", "k_scale", "v_scale"), traffic=store_traffic),
    Op("paged_attention", attention.paged_attention, attention.paged_attention_ref, (
        _attention_case("one", ((1, 1),), heads=1, groups=1, width=2, page_size=1),
        _attention_case("decode", ((1, 7), (1, 130), (1, 1))), _attention_case("prefill", ((53, 53),)),
        _attention_case("chunk", ((19, 71),)), _attention_case("mixed", _MIXED),
        _attention_case("mixed, weighted", _MIXED, weight=True),
        _attention_case("one head a group", _MIXED, heads=2),
        _attention_case("primes", _MIXED, heads=15, groups=5, width=7, page_size=3, weight=True),
        _attention_case("model", ((1, 300), (37, 300)), heads=32, width=128, skip=512),
        _fp8_attention_case("fp8, mixed", _MIXED),
        _fp8_attention_case("fp8, primes, weighted", _MIXED, heads=15, groups=5, width=7, page_size=3, weight=True),
        _attention_case("long", ((301, 517),)), _attention_case("empty", ()),
        _attention_case("no row active", ((0, 5), (0, 0))),
    ), real=(
        _attention_case("decode at 2k", ((1, 2048),), heads=32, width=128, skip=QKV - 4096),
        _attention_case("decode 16 at 2k", ((1, 2048),) * 16, heads=32, width=128, skip=QKV - 4096),
        _fp8_attention_case("fp8, decode 16 at 2k", ((1, 2048),) * 16, heads=32, width=128, skip=QKV - 4096),
        _attention_case("decode at 2k, weighted", ((1, 2048),), heads=32, width=128, skip=QKV - 4096, weight=True),
        _attention_case("prefill 512", ((512, 512),), heads=32, width=128, skip=QKV - 4096),
    ), traffic=_attention_traffic),
    Op("step_attention", into(step_attention.step_attention), into(step_attention.step_attention_ref), (
        _step_case("one", (1,), heads=1, groups=1, width=2, rotated=2, page_size=1),
        _step_case("idle rows", (7, 0, 130, 1, 0)), _step_case("halves", (33, 16), bias=False, interleaved=False),
        _step_case("norms, weighted", (5, 300), rotated=16, norm=True, bias=False, weight=True),
        _step_case("primes", (3, 61), heads=15, groups=5, width=7, rotated=6, page_size=3, norm=True, skip=13),
        _step_case("model", (300,), heads=32, width=128, rotated=64), _step_case("empty", ()),
    ), real=(
        _step_case("1 row at 2k", (2048,), heads=32, width=128, rotated=64),
        _step_case("16 rows at 2k", (2048,) * 16, heads=32, width=128, rotated=64),
        _step_case("32 rows at 2k, weighted", (2048,) * 32, heads=32, width=128, rotated=64, weight=True),
    ), mutates=("out", "k_pages", "v_pages"), traffic=_step_traffic),
)  # fmt: skip
