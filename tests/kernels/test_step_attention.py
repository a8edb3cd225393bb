"""Attention of a decode step against a definition of its own: complex numbers, keys collected one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.language.step_attention import step_attention_ref
from innervoice_kernels.testing import CASES, Case


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [H, D], cos and sin [R/2]: pairs are complex numbers, turned by their angles."""
    half = len(cos)
    own = x[:, : 2 * half]
    pairs = own.unflatten(1, (half, 2)) if interleaved else own.unflatten(1, (2, half)).transpose(1, 2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin))
    turned = turned if interleaved else turned.transpose(1, 2)
    return torch.cat((turned.flatten(1), x[:, 2 * half :]), 1)


def defined(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """out, k_pages and v_pages after a step, row by row."""
    pages = inputs["k_pages"].clone(), inputs["v_pages"].clone()
    page_size, groups, width = pages[0].shape[1:]
    heads = inputs["qkv"].shape[1] // width - 2 * groups
    out = torch.zeros(len(inputs["qkv"]), heads, width, dtype=torch.float64)
    for row, length in enumerate(inputs["context_len"].tolist()):
        if not length:
            continue
        x = inputs["qkv"][row] + inputs.get("bias", 0)
        parts = list(x.unflatten(0, (-1, width)).split([heads, groups, groups]))
        for i in range(2):
            if "norm" in inputs:
                parts[i] = F.rms_norm(parts[i], (width,), inputs["norm"][i].double(), inputs["norm"].eps)
            parts[i] = rotated(parts[i], inputs["cos"][row], inputs["sin"][row], inputs["interleaved"])
        q, *new = parts
        places = [(int(inputs["page_table"][row, i // page_size]), i % page_size) for i in range(length)]
        for side, token in zip(pages, new, strict=True):
            side[places[-1]] = token
        mask = torch.zeros(1, length, dtype=torch.float64)
        if "tags" in inputs:
            query_tag, key_tag, log_weight = inputs["tags"]
            keys = torch.stack([key_tag[place] for place in places])
            mask += log_weight[row] * ((keys == query_tag[row]) & (keys != 0))
        k, v = (
            torch.stack([side[place] for place in places])
            .repeat_interleave(heads // groups, 1)
            .transpose(0, 1)
            for side in pages
        )
        out[row] = F.scaled_dot_product_attention(q[:, None], k, v, mask, scale=inputs["scale"])[:, 0]
    return out, *pages


@pytest.mark.parametrize("case", CASES["step_attention"], ids=lambda case: case.name)
def test_a_step_rotates_stores_and_attends(case: Case) -> None:
    inputs = case.make_inputs(torch.float64, "cpu", torch.Generator().manual_seed(3))
    expected = defined(inputs)
    y = step_attention_ref(**{name: x for name, x in inputs.items() if name != "out"})
    for got, right in zip((y, inputs["k_pages"], inputs["v_pages"]), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12, equal_nan=True)
