"""Cases of a mixture of experts: the whole, and the launches that it takes on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.language import expert_groups, expert_products, experts
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, normal, rows
from innervoice_kernels.testing.quantised import int4_case, scaled_case


def _expert_case(
    name: str, t: int, e: int, k: int, d: int, f: int, normalized: bool = True, skip: int = 0
) -> Case:
    """Logits of a row are apart by a hundredth or more, so that their order is the same in every type."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        ranks = [
            torch.randperm(e, generator=generator, dtype=torch.int64, device=generator.device)
            for _ in range(t)
        ]
        order = torch.stack(ranks) if ranks else torch.empty(0, e, dtype=torch.int64, device=generator.device)
        weights = {"gate_up": (2 * f * e, d), "down": (d * e, f)}
        made = {
            key: shape[1] ** -0.5 * normal(*shape, dtype=dtype, device=device, generator=generator)
            for key, shape in weights.items()
        }
        return {
            "x": rows(t, d, dtype=dtype, device=device, generator=generator, skip=skip),
            "logits": (order.float() / 16).to(device=device, dtype=dtype),
            **made,
            "num_used": k,
            "normalized": normalized,
        }

    return Case(name, make)


def _route_case(name: str, t: int, e: int, k: int, normalized: bool = True) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        given = _expert_case(name, t, e, k, 1, 1, normalized).make_inputs(dtype, device, generator)
        return {name: given[name] for name in ("logits", "num_used", "normalized")}

    return Case(name, make)


def _chosen(t: int, e: int, k: int, generator: torch.Generator) -> Tensor:
    """Experts [T, k] of each row, apart from each other; a part of all is chosen more often."""
    weight = torch.ones(max(t, 1), e, dtype=torch.float32, device=generator.device)
    weight[:, : max(e // 4, 1)] = 8.0
    return torch.multinomial(weight, k, generator=generator)[:t].to(torch.int32)


def _group_case(name: str, t: int, e: int, k: int, tile: int = 8) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        return {"expert": _chosen(t, e, k, generator).to(device), "num_experts": e, "rows": tile}

    return Case(name, make)


# A kind of weights: name, rows and columns make the inputs of a product with them.
_KINDS: dict[str, Callable[[int, int], Case]] = {
    "int8": lambda n, k: scaled_case("int8", 0, n, k),
    "fp8": lambda n, k: scaled_case("fp8", 0, n, k, torch.float8_e4m3fn),
    "int4": lambda n, k: int4_case("int4", 0, n, k, 32),
    "symmetric": lambda n, k: int4_case("symmetric", 0, n, k, 64, symmetric=True),
    "turned": lambda n, k: int4_case("turned", 0, n, k, 32, turned=True),
}


def _product_case(
    name: str, t: int, e: int, k: int, inputs: int, outputs: int, kind: str = "plain", *, down: bool = False,
    residual: bool = False, skip: int = 0,
) -> Case:  # fmt: skip
    """outputs: of an expert. kind: of weights, plain ones have the type of x."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        if kind == "plain":
            numbers = normal(e * outputs, inputs, dtype=dtype, device=device, generator=generator)
            weights: Inputs = {"numbers": inputs**-0.5 * numbers}
        else:
            held = _KINDS[kind](e * outputs, inputs).make_inputs(dtype, device, generator)
            weights = {"numbers": held["codes"]} | {
                n: held[n] for n in ("scale", "minimum", "group", "folded") if n in held
            }
        x = rows(t * k if down else t, inputs, dtype=dtype, device=device, generator=generator, skip=skip)
        made = {"x": x, "expert": _chosen(t, e, k, generator).to(device), "num_experts": e} | weights
        if not down:
            return made
        share = torch.rand(t, k, generator=generator, dtype=torch.float32, device=generator.device).to(device)
        if residual:
            made["residual"] = normal(t, outputs, dtype=dtype, device=device, generator=generator)
        return made | {"share": share}

    return Case(name, make)


def _of_tensors(op: Callable[..., Tensor], given: str) -> Callable[..., Tensor]:
    """The op with the tensors of its weights as arguments, and its rows by the name x."""

    def run(
        x: Tensor, numbers: Tensor, scale: Tensor | None = None, minimum: Tensor | None = None, group: int = 0,
        folded: bool = False, **more: Any,
    ) -> Tensor:  # fmt: skip
        w = expert_products.ExpertWeights(numbers, scale, minimum, group, folded)
        return op(**{given: x}, w=w, **more)

    return run


def _routed_case(
    name: str, t: int, e: int, k: int, d: int, f: int, *, residual: bool = False, normalized: bool = True
) -> Case:  # fmt: skip
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        made = _expert_case(name, t, e, k, d, f, normalized).make_inputs(dtype, device, generator)
        if residual:
            made["residual"] = normal(t, d, dtype=dtype, device=device, generator=generator)
        return made

    return Case(name, make)


def _routed(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op with the numbers of its weights as arguments."""

    def run(gate_up: Tensor, down: Tensor, **more: Any) -> Tensor:
        of = expert_products.ExpertWeights
        return op(gate_up=of(gate_up), down=of(down), **more)

    return run


def _down(
    name: str, t: int, e: int, k: int, inputs: int, outputs: int, kind: str = "plain", **more: Any
) -> Case:
    return _product_case(name, t, e, k, inputs, outputs, kind, down=True, **more)


OPS = (
    Op("expert_ffn", experts.expert_ffn, experts.expert_ffn_ref, (
        _expert_case("one", 1, 1, 1, 2, 1), _expert_case("primes", 7, 11, 3, 13, 5),
        _expert_case("all", 9, 4, 4, 32, 16), _expert_case("plain shares", 5, 16, 2, 32, 24, normalized=False),
        _expert_case("wide rows", 17, 8, 2, 32, 16, skip=32), _expert_case("empty", 0, 4, 2, 8, 8),
    )),
    Op("route", expert_groups.route, expert_groups.route_ref, (
        _route_case("one", 1, 1, 1), _route_case("primes", 7, 37, 5), _route_case("all", 2, 4, 4),
        _route_case("plain shares", 3, 128, 8, normalized=False), _route_case("empty", 0, 4, 2),
    )),
    Op("group_pairs", expert_groups.group_pairs, expert_groups.group_pairs_ref, (
        _group_case("one", 1, 1, 1), _group_case("primes", 7, 11, 3), _group_case("all", 9, 4, 4),
        _group_case("many pairs", 400, 5, 3, 16), _group_case("empty", 0, 4, 2),
    ), dtypes=(torch.float32,)),
    Op("expert_gate_up", _of_tensors(expert_products.expert_gate_up, "x"),
       _of_tensors(expert_products.expert_gate_up_ref, "x"), (
        _product_case("one", 1, 1, 1, 2, 2), _product_case("primes", 7, 11, 3, 13, 10),
        _product_case("many rows", 40, 2, 1, 64, 80, skip=16), _product_case("empty", 0, 4, 2, 8, 8),
        *(_product_case(kind, 5, 6, 2, 70, 40, kind) for kind in _KINDS),
        *(_product_case(f"{kind}, many rows", 40, 2, 1, 64, 36, kind) for kind in ("int8", "int4")),
    )),
    Op("expert_down", _of_tensors(expert_products.expert_down, "h"),
       _of_tensors(expert_products.expert_down_ref, "h"), (
        _down("one", 1, 1, 1, 2, 1), _down("primes", 7, 11, 3, 13, 29, residual=True),
        _down("many rows", 40, 2, 1, 64, 72), _down("empty", 0, 4, 2, 8, 8),
        *(_down(kind, 5, 6, 2, 70, 40, kind, residual=True) for kind in _KINDS),
    )),
    Op("routed_ffn", _routed(expert_products.routed_ffn), _routed(expert_products.routed_ffn_ref), (
        _routed_case("primes", 7, 11, 3, 13, 5, residual=True), _routed_case("plain shares", 40, 6, 2, 32, 24, normalized=False),
        _routed_case("empty", 0, 4, 2, 8, 8),
    )),
)  # fmt: skip
