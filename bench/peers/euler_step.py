"""The flow's Euler step by torch's own modules, compiled whole (goal G9b)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench.peers.compiled import whole
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from innervoice.codec.glm_voice.flow import Flow
from innervoice_kernels.backend import use

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""x, mu [B, C, F], speaker [B, C], cond [B, C, F], as the flow's solver takes them."""


def stepper(flow: Flow, inputs: Inputs) -> Callable[[], Tensor]:
    """A function that takes one step from x at t = 0 to mel, [B, C, F]; compiled, warmed up.

    The step's operations are recorded once and compiled from there: which implementation an op has is looked up in Python, and
    a compiler that met the look-up would break its graph at each op.
    """
    shifts, dtype = [shift[0] for shift in flow.time_shifts(1)], flow.embedding.dtype

    def step(x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
        given, lengths = flow.given(mu.to(dtype), speaker.to(dtype), cond.to(dtype), None)
        return flow.step(x.transpose(1, 2), given, lengths, shifts, 1.0).transpose(1, 2)

    with use("ref"), torch.no_grad():
        step(*inputs)  # what a first use lays out is no part of the step
        recorded = make_fx(step)(*inputs)
    made = whole(recorded, (*recorded.buffers(), *inputs), inputs[0].device)

    @torch.inference_mode()
    def run() -> Tensor:
        return made(*inputs)

    for _ in range(3):
        run()
    return run
