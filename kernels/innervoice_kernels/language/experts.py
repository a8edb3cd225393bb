"""Mixture of experts   y_t = sum_j s_tj down_e (silu(gate_e x_t) * up_e x_t), e = e_tj for j < k

x [T, D], router logits [T, E]   ->   [T, D]; e_tj are the experts of the k largest logits of row t, s_tj their softmax
values over all E, perhaps divided by their sum. The experts' matrices stand one below the other: gate_up [2 F E, D], of
each expert gate rows first, and down [D E, F].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.language.activation import silu_mul, silu_mul_ref
from innervoice_kernels.language.expert_groups import route_ref

# An expert's product: its number and rows [M, K] -> [M, N].
ExpertProduct = Callable[[int, Tensor], Tensor]


def expert_ffn_ref(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, num_used: int, normalized: bool = True
) -> Tensor:
    """Each row by itself, in float32 (float64 for float64 input), rounded once to the type of x.

    Shazeer et al., "Outrageously Large Neural Networks", 2017; shares as in Qwen3-MoE.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    num_experts = logits.shape[-1]
    first, second = (torch.unflatten(w.to(wide), 0, (num_experts, -1)) for w in (gate_up, down))
    expert, share = route_ref(logits, num_used, normalized)
    y = torch.zeros(x.shape, dtype=wide, device=x.device)
    for t, row in enumerate(x.to(wide)):
        for e, s in zip(expert[t].tolist(), share[t], strict=True):
            y[t] += s * F.linear(silu_mul_ref(F.linear(row, first[e])), second[e])
    return y.to(x.dtype)


def grouped_ffn(
    x: Tensor,
    logits: Tensor,
    gate_up: ExpertProduct,
    down: ExpertProduct,
    num_used: int,
    normalized: bool = True,
) -> Tensor:
    """The same by products that know their weights: rows are sorted by expert, and each expert that is hit makes one
    product of all its rows. x [T, D], logits [T, E] -> [T, D]; a row's sum is in float32 and rounded once.
    """
    expert, share = route_ref(logits, num_used, normalized)
    order = expert.flatten().argsort(stable=True)  # pairs (row, place among its experts), by expert
    counts = torch.bincount(expert.flatten(), minlength=logits.shape[-1]).tolist()
    results = x.new_empty(len(order), x.shape[-1])
    begin = 0
    for number, count in enumerate(counts):
        if count:
            pairs = order[begin : begin + count]
            rows = x[torch.div(pairs, num_used, rounding_mode="floor")]
            results[pairs] = down(number, silu_mul(gate_up(number, rows)))
            begin += count
    wide = results.view(*expert.shape, x.shape[-1]).to(share.dtype)
    return (wide * share[..., None]).sum(dim=1).to(x.dtype)


def expert_ffn(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, num_used: int, normalized: bool = True
) -> Tensor:
    """x [T, D] through the experts of the largest router logits [T, E] -> [T, D], rounded once to the type of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = (
        partial(_product, torch.unflatten(w, 0, (logits.shape[-1], -1))) for w in (gate_up, down)
    )
    return grouped_ffn(wide, logits, first, second, num_used, normalized).to(x.dtype)


def _product(weights: Tensor, number: int, rows: Tensor) -> Tensor:
    return F.linear(rows, weights[number].to(rows.dtype))
