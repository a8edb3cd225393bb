"""Cases of the products with quantised weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from innervoice_kernels.language import linear_int4, linear_scaled
from innervoice_kernels.language.linear import Norm
from innervoice_kernels.language.weight_formats import fold, packed
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, normal, rows

_FFN, _WIDTH = 13696, 4096


def _more(
    inputs: Inputs, m: int, n: int, bias: bool, residual: bool, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    device = inputs["x"].device
    if bias:
        inputs["bias"] = normal(n, dtype=dtype, device=device, generator=generator)
    if residual:
        inputs["residual"] = normal(m, n, dtype=dtype, device=device, generator=generator)
    return inputs


def scaled_case(
    name: str,
    m: int,
    n: int,
    k: int,
    codes: torch.dtype = torch.int8,
    bias: bool = False,
    residual: bool = False,
    skip: int = 0,
) -> Case:
    """skip: x and codes are cut out of rows that are wider by so much."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(m, k, dtype=dtype, device=device, generator=generator, skip=skip)
        wide = torch.randint(
            -127, 128, (n, k + skip), generator=generator, dtype=torch.int8, device=generator.device
        )
        made = wide if codes == torch.int8 else (wide.float() * 3.5).to(codes)
        scale = (
            (0.5 + torch.rand(n, generator=generator, dtype=torch.float32, device=generator.device))
            * max(k, 1) ** -0.5
            / (64 if codes == torch.int8 else 256)
        )
        inputs = {"x": x, "codes": made.to(device)[:, skip:], "scale": scale.to(device)}
        return _more(inputs, m, n, bias, residual, dtype, generator)

    return Case(name, make)


def int4_case(
    name: str, m: int, n: int, k: int, group: int = 32, symmetric: bool = False, bias: bool = False,
    residual: bool = False, turned: bool = False,
) -> Case:  # fmt: skip
    """turned: scale and minimum lie group by group and codes are folded, as they are once a model is laid out for the GPU."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = normal(m, k, dtype=dtype, device=device, generator=generator)
        codes = packed(
            torch.randint(0, 16, (n, k), generator=generator, dtype=torch.int64, device=generator.device)
        )
        size, groups = max(k, 1) ** -0.5 / 4, -(-k // group)
        scale, low = (
            (0.5 + torch.rand(n, groups, generator=generator, dtype=torch.float32, device=generator.device))
            * size
            for _ in range(2)
        )
        halves = [x.half().to(device) for x in (scale, -8 * low)]
        if turned:
            halves = [x.t().contiguous().t() for x in halves]
            codes = fold(codes, k)
        inputs = {
            "x": x,
            "codes": codes.to(device),
            "scale": halves[0],
            "minimum": None if symmetric else halves[1],
        }
        return _more(inputs | {"group": group, "folded": turned}, m, n, bias, residual, dtype, generator)

    return Case(name, make)


def _fused(name: str, case: Case, gated: bool = False) -> Case:
    """The same behind a norm, and gated, as a decode step has it."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        inputs = case.make_inputs(dtype, device, generator)
        w = 1 + 0.1 * normal(inputs["x"].shape[1], dtype=dtype, device=device, generator=generator)
        return inputs | {"norm": Norm(w, 1.5625e-07), "gated": gated}

    return Case(name, make)


_FP8 = torch.float8_e4m3fn
_LAYER = (
    ("qkv", 4608, _WIDTH),
    ("out", _WIDTH, _WIDTH),
    ("gate and up", 2 * _FFN, _WIDTH),
    ("down", _WIDTH, _FFN),
)

OPS = (
    Op("scaled_linear", linear_scaled.scaled_linear, linear_scaled.scaled_linear_ref, (
        scaled_case("one", 1, 1, 1), scaled_case("primes", 7, 131, 67, bias=True),
        scaled_case("split", 2, 37, 1100), scaled_case("fp8", 5, 67, 300, _FP8, bias=True, residual=True),
        scaled_case("fp8, split", 16, 33, 2049, _FP8),
        scaled_case("wide rows", 16, 65, 96, residual=True, skip=32),
        scaled_case("17 rows", 17, 40, 72, bias=True),
        scaled_case("many rows", 300, 24, 64, bias=True, residual=True), scaled_case("empty", 0, 5, 16),
        _fused("normed", scaled_case("", 3, 37, 1100, residual=True)),
        _fused("gated", scaled_case("", 5, 66, 96, _FP8), gated=True),
        _fused("gated, many rows", scaled_case("", 300, 24, 64), gated=True),
    ), real=tuple(
        replace(scaled_case("", m, n, k, codes), name=f"{'fp8' if codes == _FP8 else 'int8'} {label} {m}")
        for codes in (torch.int8, _FP8) for m in (1, 16) for label, n, k in _LAYER
    ), sums="x"),
    Op("int4_linear", linear_int4.int4_linear, linear_int4.int4_linear_ref, (
        int4_case("one", 1, 1, 1), int4_case("primes", 7, 131, 67, bias=True),
        int4_case("odd, ragged", 3, 33, 333, 128), int4_case("split", 2, 37, 1100, 64, symmetric=True),
        int4_case("split, ragged", 16, 35, 2054, residual=True),
        int4_case("turned", 5, 70, 256, 64, bias=True, turned=True),
        int4_case("turned, ragged", 7, 37, 1130, 32, turned=True),
        int4_case("turned, 20 rows", 20, 40, 330, 32, turned=True),
        int4_case("turned, many rows", 300, 24, 90, 32, turned=True),
        int4_case("symmetric", 4, 64, 128, 32, symmetric=True),
        int4_case("17 rows", 17, 40, 160, 128, bias=True), int4_case("40 rows", 40, 24, 96, symmetric=True),
        int4_case("many rows", 300, 24, 64, bias=True, residual=True), int4_case("empty", 0, 5, 16),
        _fused("normed", int4_case("", 3, 37, 1100, 64, residual=True)),
        _fused("gated", int4_case("", 6, 70, 160, 32, turned=True), gated=True),
        _fused("gated, 17 rows", int4_case("", 17, 48, 64, symmetric=True), gated=True),
    ), real=tuple(
        int4_case(f"{group} {label} {m}", m, n, k, group, turned=True)
        for group in (32, 128) for m in (1, 16) for label, n, k in _LAYER
    ), sums="x"),
)  # fmt: skip
