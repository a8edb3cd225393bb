"""Cases and ops of the tests, and the tensors that cases are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DeviceName = str | torch.device
Inputs = dict[str, Any]
Maker = Callable[[torch.dtype, DeviceName, torch.Generator], Inputs]
OpOutputs = tuple[Tensor, ...]

HALVES_TOO = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A case: make_inputs(dtype, device, generator) returns the op's keyword arguments, all but a few numbers drawn by
    the generator on its own device.
    """

    name: str
    make_inputs: Maker


@dataclass(frozen=True)
class Op:
    """The public op and its reference.

    cases: for tests and bench; real: shapes of GLM-4-Voice, for the bench; dtypes: those that the op takes.
    mutates: arguments that are written in place, compared instead of a result.
    exact: the definition in float64; None: the reference on inputs widened to float64.
    near_tie: for an op whose first result is ids: (widened inputs, ids) -> bool, true where an id is as good
    as the best one up to rounding in float32. Every other id must equal that of the definition in float64.
    sums: the argument over whose last dimension a result is one sum, added up in float32 in any order.
    traffic: (inputs, outputs) -> bytes read and written at least; None: every tensor once.
    """

    name: str
    fast: Callable[..., Any]
    ref: Callable[..., Any]
    cases: tuple[Case, ...]
    real: tuple[Case, ...] = ()
    dtypes: tuple[torch.dtype, ...] = HALVES_TOO
    mutates: tuple[str, ...] = ()
    exact: Callable[..., Any] | None = None
    near_tie: Callable[[Inputs, Tensor], Tensor] | None = None
    sums: str | None = None
    traffic: Callable[[Inputs, OpOutputs], int] | None = None

    def outputs(self, function: Callable[..., Any], inputs: Inputs) -> OpOutputs:
        """The results of the function, or the arguments that it writes."""
        result = function(**inputs)
        if self.mutates:
            return tuple(inputs[name] for name in self.mutates)
        return result if isinstance(result, tuple) else (result,)

    def num_bytes(self, inputs: Inputs, outputs: OpOutputs) -> int:
        """Bytes that any implementation has to move: all inputs read once and all outputs written once."""
        if self.traffic is not None:
            return self.traffic(inputs, outputs)
        return num_bytes(*(value for value in inputs.values() if isinstance(value, Tensor)), *outputs)


def num_bytes(*tensors: Tensor) -> int:
    """Bytes of the elements of these tensors, whatever lies between them."""
    return sum(x.numel() * x.element_size() for x in tensors)


def fresh(*shape: int, dtype: torch.dtype, device: DeviceName) -> Tensor:
    """New memory full of NaN, so that a read of unwritten memory shows."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def normal(*shape: int, dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Tensor:
    """Normal numbers, drawn where the generator is."""
    return (
        torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
        .to(dtype)
        .to(device)
    )


def generator_on(device: DeviceName, seed: int) -> torch.Generator:
    """Make a generator that draws where the numbers are wanted: a host takes seconds for the weights of a layer."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.Generator(device if on_gpu else "cpu").manual_seed(seed)


def on_host(generator: torch.Generator) -> torch.Generator:
    """A generator on the CPU, for the few numbers that a case arranges there: the same one, or one of its seed."""
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(generator.initial_seed())


def rows(
    *shape: int, dtype: torch.dtype, device: DeviceName, generator: torch.Generator, skip: int = 0
) -> Tensor:
    """Normal rows of the given shape; with skip, they are cut out of rows that are wider by so much."""
    x = normal(*shape[:-1], shape[-1] + skip, dtype=dtype, device=device, generator=generator)
    return x[..., skip:]
