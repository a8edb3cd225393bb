"""A mixture of experts in native code, by the error rule, on every set of instructions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from native_weights import KINDS, numbers
from torch import Tensor

from innervoice.model.native import held
from innervoice.model.quant import Weight
from innervoice_kernels import _C
from innervoice_kernels.language.expert_groups import route_ref
from innervoice_kernels.language.experts import expert_ffn_ref, grouped_ffn
from innervoice_kernels.testing.rule import errors

ISAS = _C.available_isas()
# Rows, experts, experts of a row, width, width within an expert.
SIZES = ((1, 1, 1, 5, 3), (3, 9, 4, 40, 33), (2, 17, 2, 65, 31), (70, 3, 2, 64, 96), (96, 8, 8, 40, 64))


@dataclass(frozen=True)
class Layer:
    """A router and the weights of its experts."""

    router: Tensor
    gate_up: Weight
    down: Weight
    used: int

    def run(
        self, x: Tensor, isa: str | None = None, *, exact: bool = False, normalized: bool = True, threads: int = 2
    ) -> Tensor:  # fmt: skip
        out = torch.zeros(x.shape)
        weights = held(self.router), held(self.gate_up), held(self.down)
        _C.expert_ffn(_C.ThreadTeam(threads), x, *weights, out, self.used, normalized, isa, exact)
        return out

    def reference(self, x: Tensor, dtype: torch.dtype, normalized: bool = True) -> Tensor:
        """In a type; routed in float32, or in float64. In bfloat16 each product is rounded, as in the plain model."""
        wide = torch.promote_types(dtype, torch.float32)
        logits = x.to(wide) @ self.router.to(wide).T
        gate_up, down = (numbers(w, dtype) for w in (self.gate_up, self.down))
        if dtype != torch.bfloat16:
            return expert_ffn_ref(x.to(dtype), logits, gate_up, down, self.used, normalized)
        first, second = (w.unflatten(0, (len(self.router), -1)) for w in (gate_up, down))
        products = (lambda e, own: own @ first[e].T), (lambda e, own: own @ second[e].T)
        return grouped_ffn(x.to(dtype), logits, *products, self.used, normalized)


def layer(kind: str, experts: int, used: int, width: int, inner: int, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    router = torch.randn(experts, width, generator=generator) * width**-0.5
    gate_up, down = (
        KINDS[kind](torch.randn(experts * n, k, generator=generator) * k**-0.5)
        for n, k in ((2 * inner, width), (width, inner))
    )
    return Layer(router, gate_up, down, used)


def rows(count: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_experts_obey_the_error_rule(isa: str, kind: str) -> None:
    """Float32 weights by the rule in float32, the others in bfloat16, the type whose models they make."""
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    for count, experts, used, width, inner in SIZES:
        made, x = layer(kind, experts, used, width, inner), rows(count, width)
        for normalized in (True, False):
            ref, ref64 = (made.reference(x, t, normalized) for t in (dtype, torch.float64))
            error, bound = errors(made.run(x, isa, normalized=normalized), ref, ref64)
            assert error <= bound, (count, experts, normalized)


@pytest.mark.parametrize("kind", ["int8", "int4-32", "int4-64s"])
@pytest.mark.parametrize("isa", ISAS)
def test_exact_experts_obey_the_rule_of_float32(isa: str, kind: str) -> None:
    for count, experts, used, width, inner in SIZES:
        made, x = layer(kind, experts, used, width, inner), rows(count, width)
        ref, ref64 = (made.reference(x, t) for t in (torch.float32, torch.float64))
        error, bound = errors(made.run(x, isa, exact=True), ref, ref64)
        assert error <= bound, (count, experts)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4-32"])
def test_threads_do_not_change_a_bit(kind: str) -> None:
    made, x = layer(kind, 9, 3, 72, 40), rows(37, 72)
    one, two, five = (made.run(x, threads=threads) for threads in (1, 2, 5))
    assert torch.equal(one, two) and torch.equal(one, five)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4-32"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_beside_others_is_the_row_alone(isa: str, kind: str) -> None:
    """Up to its last bits, which the number of rows of an expert may change; of two equal experts the first is taken."""
    made, x = layer(kind, 6, 3, 32, 48), rows(40, 32)
    made.router[4] = made.router[1]
    together = made.run(x, isa, exact=kind.startswith("int"))
    alone = torch.cat([made.run(row[None], isa, exact=kind.startswith("int")) for row in x])
    error, bound = errors(together, made.reference(x, torch.float32), alone.double())
    tolerance = max(bound, 1e-2 if kind == "bfloat16" else 2e-6)
    assert error <= tolerance * max(1.0, alone.abs().max().item())


@pytest.mark.parametrize("isa", ISAS)
def test_experts_without_rows_are_not_read(isa: str) -> None:
    made, x = layer("float32", 12, 2, 24, 20), rows(3, 24)
    expected = made.run(x, isa)
    hit = set(route_ref(x @ made.router.T, 2)[0].flatten().tolist())
    assert 2 <= len(hit) <= 6
    for expert in set(range(12)) - hit:
        made.gate_up[40 * expert : 40 * (expert + 1)] = torch.nan
        made.down[24 * expert : 24 * (expert + 1)] = torch.nan
    assert torch.equal(made.run(x, isa), expected)


def test_no_rows_and_what_is_refused() -> None:
    made, x = layer("float32", 8, 2, 32, 64), rows(3, 32)
    assert made.run(x[:0]).shape == (0, 32)
    out, team = torch.zeros(3, 32), _C.ThreadTeam(1)
    router, gate_up, down = map(held, (made.router, made.gate_up, made.down))
    for used in (0, 9):
        with pytest.raises(ValueError, match=f"num_used is {used}: use 1 to 8"):
            _C.expert_ffn(team, x, router, gate_up, down, out, used)
    with pytest.raises(ValueError, match=r"gate_up and down do not fit 8 experts of \[32 to 64\]"):
        _C.expert_ffn(team, x, router, down, down, out, 1)
    with pytest.raises(ValueError, match=r"x: expected float32 \[T, D\] with D = 32"):
        _C.expert_ffn(team, rows(3, 31), router, gate_up, down, out, 1)
    assert not out.any()
