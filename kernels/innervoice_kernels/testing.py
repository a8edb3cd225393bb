"""One list of cases an op, shared by the tests and the bench, and the rule by which an implementation is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels import activation, attention, kvstore, norm, rope

Device = str | torch.device
Inputs = dict[str, Any]
Maker = Callable[[torch.dtype, Device, torch.Generator], Inputs]


@dataclass(frozen=True)
class Case:
    """make_inputs(dtype, device, generator) gives the op's keyword arguments; the generator lives on the CPU."""

    name: str
    make_inputs: Maker


@dataclass(frozen=True)
class Op:
    """The public op and its reference; mutates: arguments that are written in place, compared instead of a result."""

    name: str
    fast: Callable[..., Any]
    ref: Callable[..., Any]
    cases: tuple[Case, ...]
    mutates: tuple[str, ...] = ()

    def outputs(self, function: Callable[..., Any], inputs: Inputs) -> tuple[Tensor, ...]:
        """What the function returns, or what it leaves in the arguments that it writes."""
        result = function(**inputs)
        if self.mutates:
            return tuple(inputs[name] for name in self.mutates)
        return result if isinstance(result, tuple) else (result,)


def fresh(*shape: int, dtype: torch.dtype, device: Device) -> Tensor:
    """New memory full of NaN, so that what is read without having been written shows."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def normal(*shape: int, dtype: torch.dtype, device: Device, generator: torch.Generator) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def errors(got: Tensor, ref: Tensor, ref64: Tensor) -> tuple[float, float]:
    """(error, bound): max|got - ref64| and 2 max|ref - ref64| + tiny, tiny being float32's rounding of the largest value.

    Infinity when shapes or places of NaN differ. Rule of flash-attention's tests.
    """
    if got.shape != ref64.shape or not torch.equal(got.isnan(), ref64.isnan()):
        return float("inf"), 0.0
    if got.numel() == 0:
        return 0.0, 0.0
    got, ref, ref64 = (x.double().nan_to_num(nan=0.0) for x in (got, ref, ref64))
    tiny = torch.finfo(torch.float32).eps * ref64.abs().max().item()
    return (got - ref64).abs().max().item(), 2 * (ref - ref64).abs().max().item() + tiny


def check(
    op: Op, case: Case, dtype: torch.dtype, device: Device = "cpu", fast: Callable[..., Any] | None = None, seed: int = 0
) -> float:
    """Run one case by `fast` (None: the public op) and by the reference in dtype and in float64; returns the error.

    Raises AssertionError with the numbers when the rule is broken, or when the type of the result is not the reference's.
    """

    def inputs() -> Inputs:
        return case.make_inputs(dtype, device, torch.Generator().manual_seed(seed))

    got = op.outputs(fast or op.fast, inputs())
    ref = op.outputs(op.ref, inputs())
    ref64 = op.outputs(op.ref, {name: _widened(value) for name, value in inputs().items()})
    worst = 0.0
    for one, in_dtype, in_64 in zip(got, ref, ref64, strict=True):
        error, bound = errors(one, in_dtype, in_64)
        assert one.dtype == in_dtype.dtype, f"{op.name} {case.name}: result is {one.dtype}, expected {in_dtype.dtype}"
        assert error <= bound, f"{op.name} {case.name} {dtype}: error {error:.3g} exceeds {bound:.3g}"
        worst = max(worst, error)
    return worst


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rows(*shape: int, skip: int = 0) -> Callable[[torch.dtype, Device, torch.Generator], Tensor]:
    """Rows of the given shape; with skip, they are cut out of rows that are wider by so much."""

    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Tensor:
        x = normal(*shape[:-1], shape[-1] + skip, dtype=dtype, device=device, generator=generator)
        return x[..., skip:]

    return make


def _norm_case(name: str, *shape: int, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        x = _rows(*shape, skip=skip)(dtype, device, generator)
        return {"x": x, "w": 1 + 0.1 * normal(shape[-1], dtype=dtype, device=device, generator=generator), "eps": 3.90625e-08}

    return Case(name, make)


def _silu_case(name: str, *shape: int, skip: int = 0) -> Case:
    return Case(name, lambda dtype, device, generator: {"x": _rows(*shape, skip=skip)(dtype, device, generator)})


def _rope_case(name: str, time: int, heads: int, width: int, rotated: int, interleaved: bool = True, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        x = _rows(time, heads * width, skip=skip)(dtype, device, generator)
        angle = torch.rand(time, rotated // 2, generator=generator) * 6.28
        cos, sin = angle.cos().to(dtype).to(device), angle.sin().to(dtype).to(device)
        return {"x": torch.unflatten(x, -1, (heads, width)), "cos": cos, "sin": sin, "interleaved": interleaved}

    return Case(name, make)


def _store_case(name: str, time: int, groups: int, width: int, pages: int, page_size: int, idle: int = 0, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        k, v = (_rows(time, groups * width, skip=skip)(dtype, device, generator) for _ in range(2))
        slots = torch.randperm(pages * page_size, generator=generator)[:time]
        slots[:idle] = -1
        k_pages, v_pages = (fresh(pages, page_size, groups, width, dtype=dtype, device=device) for _ in range(2))
        k, v = torch.unflatten(k, -1, (groups, width)), torch.unflatten(v, -1, (groups, width))
        return {"k": k, "v": v, "k_pages": k_pages, "v_pages": v_pages, "slots": slots.to(device)}

    return Case(name, make)


def _attention_case(
    name: str,
    rows: tuple[tuple[int, int], ...],
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    page_size: int = 16,
    weight: bool = False,
    skip: int = 0,
) -> Case:
    """rows: (number of queries, context length) of each row. Pages lie shuffled; what no row uses is NaN."""

    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        counts = [-(-length // page_size) for _, length in rows]
        num_pages = sum(counts) + 1
        order = torch.randperm(num_pages, generator=generator)
        table = torch.zeros(len(rows), max(counts, default=0), dtype=torch.int32)
        k_pages, v_pages = (fresh(num_pages, page_size, groups, width, dtype=dtype, device=device) for _ in range(2))
        taken = 0
        for row, ((_, length), count) in enumerate(zip(rows, counts, strict=True)):
            table[row, :count] = order[taken : taken + count]
            taken += count
            slots = (table[row, :count, None].long() * page_size + torch.arange(page_size)).flatten()[:length].to(device)
            keys, values = (normal(length, groups, width, dtype=dtype, device=device, generator=generator) for _ in range(2))
            kvstore.store_kv_ref(keys, values, k_pages, v_pages, slots)
        starts = torch.tensor([0, *(queries for queries, _ in rows)]).cumsum(0).int()
        q = _rows(int(starts[-1]), heads * width, skip=skip)(dtype, device, generator)
        inputs: Inputs = {
            "q": torch.unflatten(q, -1, (heads, width)), "k_pages": k_pages, "v_pages": v_pages, "page_table": table.to(device),
            "query_start": starts.to(device), "context_len": torch.tensor([n for _, n in rows], dtype=torch.int32).to(device),
            "scale": width**-0.5,
        }  # fmt: skip
        if weight:
            inputs["query_tag"] = torch.randint(0, 3, (len(q),), generator=generator, dtype=torch.int32).to(device)
            inputs["key_tag"] = torch.randint(0, 3, (num_pages, page_size), generator=generator, dtype=torch.int32).to(device)
            inputs["log_weight"] = (0.5 * torch.rand(len(rows), generator=generator)).to(device)
        return inputs

    return Case(name, make)


_MIXED = ((1, 37), (5, 5), (3, 61), (0, 9), (1, 1), (17, 33))  # decode, prefill, chunk, inactive row

OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op("rms_norm", norm.rms_norm, norm.rms_norm_ref, (
            _norm_case("one", 1, 1), _norm_case("primes", 7, 131), _norm_case("model", 3, 4096),
            _norm_case("wide rows", 5, 64, skip=64), _norm_case("three dims", 2, 3, 64), _norm_case("empty", 0, 64),
        )),
        Op("silu_mul", activation.silu_mul, activation.silu_mul_ref, (
            _silu_case("one", 1, 2), _silu_case("primes", 7, 262), _silu_case("model", 3, 27392),
            _silu_case("wide rows", 5, 64, skip=32), _silu_case("empty", 0, 64),
        )),
        Op("rotary", rope.rotary, rope.rotary_ref, (
            _rope_case("one", 1, 1, 2, 2), _rope_case("primes", 13, 5, 14, 6), _rope_case("model", 11, 32, 128, 64, skip=512),
            _rope_case("halves", 7, 3, 16, 16, interleaved=False), _rope_case("empty", 0, 4, 32, 16),
        )),
        Op("store_kv", kvstore.store_kv, kvstore.store_kv_ref, (
            _store_case("one", 1, 1, 1, 1, 1), _store_case("primes", 13, 3, 7, 5, 11),
            _store_case("model", 40, 2, 128, 4, 16, skip=4096),
            _store_case("idle", 5, 2, 16, 2, 8, idle=2), _store_case("empty", 0, 2, 16, 1, 16),
        ), mutates=("k_pages", "v_pages")),
        Op("paged_attention", attention.paged_attention, attention.paged_attention_ref, (
            _attention_case("one", ((1, 1),), heads=1, groups=1, width=2, page_size=1),
            _attention_case("decode", ((1, 7), (1, 130), (1, 1))),
            _attention_case("prefill", ((53, 53),)), _attention_case("chunk", ((19, 71),)), _attention_case("mixed", _MIXED),
            _attention_case("mixed, weighted", _MIXED, weight=True), _attention_case("one head a group", _MIXED, heads=2),
            _attention_case("primes", _MIXED, heads=15, groups=5, width=7, page_size=3, weight=True),
            _attention_case("model", ((1, 300), (37, 300)), heads=32, width=128, skip=512),
            _attention_case("long", ((301, 517),)), _attention_case("empty", ()),
            _attention_case("nobody active", ((0, 5), (0, 0))),
        )),
    )
}  # fmt: skip

CASES: Mapping[str, tuple[Case, ...]] = {name: op.cases for name, op in OPS.items()}
