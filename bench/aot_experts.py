"""The calls of a mixture of experts that are compiled ahead of time, at the shapes of Qwen3-Omni-30B-A3B's thinker."""

from __future__ import annotations

import torch
from bench.aot_shapes import Call, call, empty, ints
from torch import Tensor

from innervoice_kernels.language import expert_groups, expert_products
from innervoice_kernels.language.weight_formats import folded_width

D, EXPERTS, USED, F = 2048, 128, 8, 768
FORMATS = ("plain", "int8", "fp8", "int4 32", "int4 128", "symmetric 32")


def weights(outputs: int, inputs: int, kind: str, dtype: torch.dtype) -> expert_products.ExpertWeights:
    """Of all experts; int4 laid out as for the GPU, scales and minima group by group, codes folded."""
    num = EXPERTS * outputs
    if kind == "plain":
        return expert_products.ExpertWeights(empty(num, inputs, dtype=dtype))
    if kind in ("int8", "fp8"):
        codes = empty(num, inputs, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
        return expert_products.ExpertWeights(codes, empty(num, dtype=torch.float32))
    form, group = kind.split()
    scale, low = (empty(inputs // int(group), num, dtype=torch.float16).t() for _ in range(2))
    codes = empty(num, folded_width(inputs), dtype=torch.uint8)
    return expert_products.ExpertWeights(
        codes, scale, None if form == "symmetric" else low, int(group), folded=True
    )


def routing(rows: int, dtype: torch.dtype) -> list[Call]:
    """Experts of a step's rows, and rows of the experts."""
    tile = expert_products.rows_of_groups(rows * USED, EXPERTS)
    logits, expert = empty(rows, EXPERTS, dtype=dtype), ints(rows, USED)
    return [
        call(f"{rows} rows of 128 experts", expert_groups.route, logits, USED),
        call(f"{rows} rows of 128 experts", expert_groups.group_pairs, expert, EXPERTS, tile),
    ]


def products(rows: int, kind: str, dtype: torch.dtype) -> list[Call]:
    """Gate and up; down with the weighted sum."""
    x, h, expert = empty(rows, D, dtype=dtype), empty(rows * USED, F, dtype=dtype), ints(rows, USED)
    share: Tensor = empty(rows, USED, dtype=torch.float32)
    first, second = weights(2 * F, D, kind, dtype), weights(D, F, kind, dtype)
    name = f"{rows} rows, {str(dtype).removeprefix('torch.') if kind == 'plain' else kind}"
    return [
        call(f"gate and up, {name}", expert_products.expert_gate_up, x, expert, first, EXPERTS),
        call(f"down, {name}", expert_products.expert_down, h, expert, share, second, EXPERTS, x),
    ]


BF16 = torch.bfloat16
CALLS = [
    *(made for rows in (1, 64, 512) for made in routing(rows, BF16)),
    *(made for kind in FORMATS for rows in (1, 512) for made in products(rows, kind, BF16)),
    *(made for dtype in (torch.float16, torch.float32) for made in products(1, "plain", dtype)),
]
