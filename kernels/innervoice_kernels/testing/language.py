"""Cases of the language model's ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.language import activation, kvstore, linear, norm, qkv, rope
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


def _norm_case(name: str, *shape: int, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(*shape, dtype=dtype, device=device, generator=generator, skip=skip)
        return {
            "x": x,
            "w": 1 + 0.1 * normal(shape[-1], dtype=dtype, device=device, generator=generator),
            "eps": 3.90625e-08,
        }

    return Case(name, make)


def _add_norm_case(name: str, *shape: int, skip: int = 0) -> Case:
    """The residual has contiguous rows, x perhaps not."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        inputs = _norm_case(name, *shape, skip=skip).make_inputs(dtype, device, generator)
        return inputs | {"residual": normal(*shape, dtype=dtype, device=device, generator=generator)}

    return Case(name, make)


def _linear_case(
    name: str,
    m: int,
    n: int,
    k: int,
    bias: bool = False,
    residual: bool = False,
    normed: bool = False,
    skip: int = 0,
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        scale = max(k, 1) ** -0.5
        inputs: Inputs = {
            "x": rows(m, k, dtype=dtype, device=device, generator=generator, skip=skip),
            "w": rows(n, k, dtype=dtype, device=device, generator=generator, skip=skip) * scale,
        }
        if bias:
            inputs["bias"] = normal(n, dtype=dtype, device=device, generator=generator)
        if residual:
            inputs["residual"] = rows(m, n, dtype=dtype, device=device, generator=generator, skip=skip)
        if normed:
            inputs["norm"] = linear.Norm(
                1 + 0.1 * normal(k, dtype=dtype, device=device, generator=generator), 1.5625e-07
            )
        return inputs

    return Case(name, make)


def _silu_case(name: str, *shape: int, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        return {"x": rows(*shape, dtype=dtype, device=device, generator=generator, skip=skip)}

    return Case(name, make)


def _rope_case(
    name: str, time: int, heads: int, width: int, rotated: int, interleaved: bool = True, skip: int = 0
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(time, heads * width, dtype=dtype, device=device, generator=generator, skip=skip)
        angle = (
            torch.rand(time, rotated // 2, generator=on_host(generator), dtype=torch.float32, device="cpu")
            * 6.28
        )
        cos, sin = angle.cos().to(dtype).to(device), angle.sin().to(dtype).to(device)
        return {
            "x": torch.unflatten(x, -1, (heads, width)),
            "cos": cos,
            "sin": sin,
            "interleaved": interleaved,
        }

    return Case(name, make)


def _store_case(
    name: str, time: int, groups: int, width: int, pages: int, page_size: int, idle: int = 0, skip: int = 0
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        wide = [
            rows(time, groups * width, dtype=dtype, device=device, generator=generator, skip=skip)
            for _ in range(2)
        ]
        k, v = (torch.unflatten(x, -1, (groups, width)) for x in wide)
        slots = torch.randperm(
            pages * page_size, generator=on_host(generator), dtype=torch.int64, device="cpu"
        )[:time]
        slots[:idle] = -1
        k_pages, v_pages = (
            fresh(pages, page_size, groups, width, dtype=dtype, device=device) for _ in range(2)
        )
        return {"k": k, "v": v, "k_pages": k_pages, "v_pages": v_pages, "slots": slots.to(device)}

    return Case(name, make)


def store_traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """Every token that has a slot is read and written; the rest of the pages is left alone."""
    kept = inputs["slots"] >= 0
    return num_bytes(inputs["slots"]) + 2 * num_bytes(inputs["k"][kept], inputs["v"][kept])


def _qkv_case(
    name: str,
    time: int,
    heads: int,
    groups: int,
    width: int,
    rotated: int,
    page_size: int = 16,
    pages: int = 0,
    interleaved: bool = True,
    bias: bool = True,
    norm: bool = False,
    idle: int = 0,
    skip: int = 0,
) -> Case:
    """pages 0: as many as the tokens fill."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        num_pages = pages or -(-time // page_size)
        slots = torch.randperm(
            num_pages * page_size, generator=on_host(generator), dtype=torch.int64, device="cpu"
        )[:time]
        slots[:idle] = -1
        made = qkv_inputs(
            time, heads, groups, width, rotated, dtype, device, generator, interleaved, bias, norm, skip
        )
        return made | {
            "out": fresh(time, heads, width, dtype=dtype, device=device), "slots": slots.to(device),
            "k_pages": fresh(num_pages, page_size, groups, width, dtype=dtype, device=device),
            "v_pages": fresh(num_pages, page_size, groups, width, dtype=dtype, device=device),
        }  # fmt: skip

    return Case(name, make)


def qkv_inputs(
    time: int,
    heads: int,
    groups: int,
    width: int,
    rotated: int,
    dtype: torch.dtype,
    device: DeviceName,
    generator: torch.Generator,
    interleaved: bool = True,
    bias: bool = True,
    norm: bool = False,
    skip: int = 0,
) -> Inputs:
    """Queries, keys and values of so many tokens side by side, their angles, a bias and norms."""
    total = (heads + 2 * groups) * width
    angle = (
        torch.rand(time, rotated // 2, generator=on_host(generator), dtype=torch.float32, device="cpu") * 6.28
    )
    inputs: Inputs = {
        "qkv": rows(time, total, dtype=dtype, device=device, generator=generator, skip=skip),
        "cos": angle.cos().to(dtype).to(device), "sin": angle.sin().to(dtype).to(device),
        "interleaved": interleaved,
    }  # fmt: skip
    if bias:
        inputs["bias"] = normal(total, dtype=dtype, device=device, generator=generator)
    if norm:
        weights = [1 + 0.1 * normal(width, dtype=dtype, device=device, generator=generator) for _ in range(2)]
        inputs["norm"] = qkv.HeadNorm(*weights, eps=1e-6)
    return inputs


def into(function: Callable[..., Tensor]) -> Callable[..., None]:
    """The op with its queries written to `out`, so that all it writes are arguments."""

    def run(out: Tensor, **inputs: Any) -> None:
        out.copy_(function(**inputs))

    return run


def _qkv_traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """Every token is read once and written once, those without a slot but for their keys and values."""
    qkv_bytes, q_bytes = num_bytes(inputs["qkv"]), num_bytes(outputs[0])
    stored = int((inputs["slots"] >= 0).sum()) * 2 * num_bytes(inputs["k_pages"][0, 0])
    return qkv_bytes + q_bytes + stored + num_bytes(inputs["cos"], inputs["sin"], inputs["slots"])


QKV = 4096 + 2 * 2 * 128  # GLM-4-Voice's queries, keys and values lie side by side
OPS = (
    Op("rms_norm", norm.rms_norm, norm.rms_norm_ref, (
        _norm_case("one", 1, 1), _norm_case("primes", 7, 131), _norm_case("model", 3, 4096),
        _norm_case("wide rows", 5, 64, skip=64), _norm_case("three dims", 2, 3, 64),
        _norm_case("empty", 0, 64),
    ), real=(_norm_case("decode", 1, 4096), _norm_case("decode 16", 16, 4096),
             _norm_case("prefill 512", 512, 4096))),
    Op("add_rms_norm", norm.add_rms_norm, norm.add_rms_norm_ref, (
        _add_norm_case("one", 1, 1), _add_norm_case("primes", 7, 131), _add_norm_case("model", 3, 4096),
        _add_norm_case("wide rows", 5, 64, skip=64), _add_norm_case("three dims", 2, 3, 64, skip=3),
        _add_norm_case("empty", 0, 64),
    ), real=(
        _add_norm_case("decode", 1, 4096), _add_norm_case("decode 16", 16, 4096),
        _add_norm_case("prefill 512", 512, 4096),
    )),
    Op("silu_mul", activation.silu_mul, activation.silu_mul_ref, (
        _silu_case("one", 1, 2), _silu_case("primes", 7, 262), _silu_case("model", 3, 27392),
        _silu_case("wide rows", 5, 64, skip=32), _silu_case("empty", 0, 64),
    ), real=(_silu_case("decode", 1, 27392), _silu_case("decode 16", 16, 27392),
             _silu_case("prefill 512", 512, 27392))),
    Op("linear", linear.linear, linear.linear_ref, (
        _linear_case("one", 1, 1, 1), _linear_case("primes", 7, 131, 67, bias=True),
        _linear_case("split", 2, 37, 1100, bias=True),
        _linear_case("split, uneven", 16, 67, 2049, residual=True, normed=True),
        _linear_case("residual", 5, 64, 128, residual=True),
        _linear_case("wide rows", 16, 65, 96, residual=True, normed=True, skip=32),
        _linear_case("normed", 3, 70, 136, normed=True),
        _linear_case("17 rows", 17, 40, 72, bias=True, residual=True, normed=True),
        _linear_case("empty", 0, 5, 16),
    ), real=tuple(
        _linear_case(
            f"{label} {m}", m, n, k,
            bias=label == "qkv", residual=label in ("out", "down"), normed=label == "qkv",
        )
        for m in (1, 16)
        for label, n, k in (("qkv", 4608, 4096), ("out", 4096, 4096), ("down", 4096, 13696))
    ), sums="x"),
    Op("gated_linear", linear.gated_linear, linear.gated_linear_ref, (
        _linear_case("one", 1, 2, 1), _linear_case("primes", 7, 134, 67),
        _linear_case("normed", 16, 66, 272, normed=True), _linear_case("wide rows", 5, 64, 96, skip=32),
        _linear_case("17 rows", 17, 40, 72, normed=True), _linear_case("empty", 0, 4, 16),
    ), real=(_linear_case("decode", 1, 27392, 4096, normed=True),
             _linear_case("decode 16", 16, 27392, 4096, normed=True)), sums="x"),
    Op("rotary", rope.rotary, rope.rotary_ref, (
        _rope_case("one", 1, 1, 2, 2), _rope_case("primes", 13, 5, 14, 6),
        _rope_case("model", 11, 32, 128, 64, skip=512), _rope_case("halves", 7, 3, 16, 16, interleaved=False),
        _rope_case("empty", 0, 4, 32, 16),
    ), real=(
        _rope_case("decode, queries", 1, 32, 128, 64, skip=QKV - 4096),
        _rope_case("decode, keys", 1, 2, 128, 64, skip=QKV - 256),
        _rope_case("prefill 512, queries", 512, 32, 128, 64, skip=QKV - 4096),
        _rope_case("prefill 512, keys", 512, 2, 128, 64, skip=QKV - 256),
    )),
    Op("store_kv", kvstore.store_kv, kvstore.store_kv_ref, (
        _store_case("one", 1, 1, 1, 1, 1), _store_case("primes", 13, 3, 7, 5, 11),
        _store_case("model", 40, 2, 128, 4, 16, skip=4096),
        _store_case("idle", 5, 2, 16, 2, 8, idle=2), _store_case("empty", 0, 2, 16, 1, 16),
    ), real=(
        _store_case("decode", 1, 2, 128, 129, 16, skip=QKV - 256),
        _store_case("prefill 512", 512, 2, 128, 129, 16, skip=QKV - 256),
    ), mutates=("k_pages", "v_pages"), traffic=store_traffic),
    Op("qkv_rope_store", into(qkv.qkv_rope_store), into(qkv.qkv_rope_store_ref), (
        _qkv_case("one", 1, 1, 1, 2, 2, page_size=1),
        _qkv_case("primes", 13, 5, 3, 14, 6, page_size=3, interleaved=False),
        _qkv_case("model", 5, 32, 2, 128, 64, pages=3, skip=64), _qkv_case("many", 67, 3, 1, 16, 8),
        _qkv_case("no bias, idle", 7, 4, 2, 16, 16, bias=False, interleaved=False, idle=2),
        _qkv_case("norms", 7, 4, 2, 16, 16, bias=False, interleaved=False, norm=True),
        _qkv_case("norms, pairs", 9, 4, 2, 12, 6, norm=True, page_size=128),
        _qkv_case("empty", 0, 4, 2, 16, 16, pages=1),
    ), real=(
        _qkv_case("decode", 1, 32, 2, 128, 64, pages=129),
        _qkv_case("decode 16", 16, 32, 2, 128, 64, pages=129),
        _qkv_case("prefill 512", 512, 32, 2, 128, 64, pages=129),
    ), mutates=("out", "k_pages", "v_pages"), traffic=_qkv_traffic),
)  # fmt: skip
