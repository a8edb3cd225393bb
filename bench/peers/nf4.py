"""transformers' GLM whose linear layers are bitsandbytes' in NF4, as GLM-4-Voice's own int4 mode loads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench.peers import transformers_glm
from torch import Tensor, nn

from innervoice.model.transformer import Transformer


def quantise(module: nn.Module, device: torch.device) -> None:
    """Every nn.Linear below a module becomes a 4-bit one with the same numbers; the output layer stays as it is."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            quantise(child, device)
        elif name != "lm_head":
            made = Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=child.weight.dtype,
                quant_type="nf4",
            )
            made.weight = Params4bit(child.weight.detach(), requires_grad=False, quant_type="nf4")
            made.bias = child.bias
            setattr(module, name, made.to(device))


def stepper(model: Transformer, rows: int, context: int) -> Callable[[], Tensor]:
    """A function that takes one greedy step of the 4-bit peer; see `transformers_glm.stepper`."""
    return transformers_glm.stepper(
        model, rows, context, compiled=False, change=lambda made: quantise(made, model.weights.device)
    )
