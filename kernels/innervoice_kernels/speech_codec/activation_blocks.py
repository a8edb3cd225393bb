"""Activations of a tile in registers, shared by the kernels of the speech decoder."""

from __future__ import annotations

from innervoice_kernels.jit import Block, jit, tl


@jit
def mish(x: Block) -> Block:
    """x tanh(ln(1 + e^x)) in float32, as x (e^2 + 2 e) / (e^2 + 2 e + 2) of e = e^x; above 20 it is x."""
    e = tl.exp(tl.minimum(x, 20.0))
    top = e * (e + 2)
    return x * (top / (top + 2))


@jit
def snake(x: Block, alpha: Block) -> Block:
    """x + sin(a x)^2 / (a + 1e-9) in float32."""
    sine = tl.sin(alpha * x)
    return x + sine * sine / (alpha + 1e-9)
