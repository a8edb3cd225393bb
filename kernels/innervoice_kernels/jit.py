"""Triton where it is installed, and a stand-in where it is not, so that every op's file holds its
kernel beside its reference.

Kernels are launched by `launch` alone: within `recorded()` it writes launches down instead, which is how the
ahead-of-time compiler learns what an op launches at a shape, from tensors on torch's meta device, and how a
warm-up learns what `compile_all` is to compile.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from innervoice_kernels.interpreter import mend


class _Absent:
    """Stands in for triton's modules: decorators and constants give back what they are given."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        return value


HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

triton: Any = importlib.import_module("triton") if HAS_TRITON else _Absent()
tl: Any = importlib.import_module("triton.language") if HAS_TRITON else _Absent()

if INTERPRETED:
    mend()

# In a kernel's signature: Ptr an address, Num a number known at run time, Count one that varies from call to
# call, constexpr one known to the compiler, Block a tile. Triton compiles a kernel anew for a Num that is 1 or
# a multiple of 16, which pays for strides and widths; a Count it takes as it comes.
if TYPE_CHECKING:
    Ptr: TypeAlias = Any
    Num: TypeAlias = Any
    Count: TypeAlias = Any
    Block: TypeAlias = Any
    constexpr: TypeAlias = Any
else:  # Triton looks these names up
    Ptr = Num = Count = Block = tl.tensor
    constexpr = tl.constexpr


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit, which compiles nothing anew for another Count, or the function as it is without Triton."""
    varying = [name for name, kind in function.__annotations__.items() if kind == "Count"]
    return triton.jit(function, do_not_specialize=varying) if HAS_TRITON else function


_compiled: list[str] = []


def num_compiled() -> int:
    """Kernels that were compiled, or loaded from Triton's cache, since the first
    call: what a first use costs.
    """
    if HAS_TRITON and not INTERPRETED and triton.knobs.runtime.jit_post_compile_hook is not _note:
        _earlier.append(triton.knobs.runtime.jit_post_compile_hook)
        triton.knobs.runtime.jit_post_compile_hook = _note
    return len(_compiled)


_earlier: list[Any] = []


def _note(**compilation: Any) -> Any:
    _compiled.append(compilation["repr"])
    hook = _earlier[-1]
    return None if hook is None else hook(**compilation)


@dataclass(frozen=True)
class Launch:
    """A recorded kernel launch: a kernel with its arguments by name (tensors, numbers,
    constants), its compile options, and the programs that it starts.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...] = (1,)


_OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")
_recorder: ContextVar[list[Launch] | None] = ContextVar("innervoice_recorder", default=None)

# Programmatic dependent launch: a kernel with a constant PDL begins before the one ahead of it has
# ended, and waits in `follow`.
PDL_SINCE = (9, 0)  # compute capability
_pdl: ContextVar[bool] = ContextVar("innervoice_pdl", default=False)


@contextmanager
def dependent_launches(on: bool = True) -> Iterator[None]:
    """Within, kernels that can (those with a constant PDL) are launched
    dependently: for GPUs from PDL_SINCE on.
    """
    token = _pdl.set(on)
    try:
        yield
    finally:
        _pdl.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run kernel over the grid, on the device of its first tensor; an empty grid runs nothing.

    PDL is added where it is due.
    """
    if "PDL" in kernel.arg_names:
        constants["PDL"] = _pdl.get()
        if constants["PDL"]:
            constants["launch_pdl"] = True
    recorder = _recorder.get()
    if recorder is not None:
        recorder.append(_record(kernel, grid, args, constants))
        return
    if 0 in grid:
        return
    device = next(x.device for x in args if isinstance(x, Tensor))
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*args, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*args, **constants)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within, launches of this thread are written down in the list and do not run."""
    launches: list[Launch] = []
    token = _recorder.set(launches)
    try:
        yield launches
    finally:
        _recorder.reset(token)


def is_recording() -> bool:
    """Whether launches of this thread are written down and do not run."""
    return _recorder.get() is not None


def compile_all(launches: Iterable[Launch], threads: int | None = None) -> None:
    """Compile what the launches need, side by side in threads (None: one for each core), and launch nothing.

    A kernel that does not compile is left for its launch to report. Tensors of the launches lie where the
    kernels will run; the interpreter compiles nothing.
    """
    if not HAS_TRITON or INTERPRETED:
        return
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        for launch in launches:
            device = next(x.device for x in launch.arguments.values() if isinstance(x, Tensor))
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                launch.kernel.warmup(**launch.arguments, **launch.options, grid=(1,))


def _record(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
    options = {name: constants[name] for name in _OPTIONS if name in constants}
    names = [name for name in kernel.arg_names if name not in constants]
    arguments = dict(zip(names, args, strict=True)) | {
        k: v for k, v in constants.items() if k not in _OPTIONS
    }
    return Launch(kernel, arguments, options, grid)


def next_power(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least `number` and `least`."""
    return max(least, 1 << max(number - 1, 0).bit_length())


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def is_ragged(*sizes: int) -> bool:
    """Whether rows of these sizes or strides are read number by number, each into a register of its own: a tile is
    copied to shared memory 16 bytes at a time where all of them are multiples of 16.
    """
    return any(size % 16 for size in sizes)


# The interpreter cuts bfloat16 and fp8 off where hardware rounds, and multiplies bit patterns in a
# dot: both are put right here.
_INTERPRETED = tl.constexpr(INTERPRETED)


@jit
def narrow(x: Block, like: Ptr) -> Block:
    """Float32 x in the type that an address points to, rounded to nearest even."""
    if _INTERPRETED and like.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    if _INTERPRETED and like.dtype.element_ty == tl.float8e4nv:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits behind the point
        steps = (x + 24576.0) - 24576.0  # 1.5 x 2^14, whose last bit is 2^-9: the steps below 2^-6
        x = tl.where(tl.abs(x) < 0.015625, steps, bits.to(tl.float32, bitcast=True))
    return x.to(like.dtype.element_ty)


@jit
def follow() -> None:
    """Let the next kernel begin and wait for the one before; a kernel with PDL calls this
    ahead of all reads but weights.
    """
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


@jit
def fetch_ahead(place: Block) -> None:
    """Bring the line of 128 bytes at each address into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
    )


@jit
def dot(a: Block, b: Block, total: Block) -> Block:
    """a @ b + total on the tensor cores, added up in float32; float32 operands are
    multiplied as such, not as tf32.
    """
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@jit
def add_dot(a: Block, b: Block, total: Block) -> Block:
    """a @ b + total as `dot`, but float32 operands' products are added up among themselves, and then to total: the error of a
    long sum grows with its tiles, not with its terms.
    """
    if a.dtype == tl.float32 and not _INTERPRETED:
        # A zero that the compiler does not see, which would add the products to total one after the other again.
        nothing = tl.inline_asm_elementwise(
            "mov.b32 $0, 0;", "=r,r", [total], dtype=tl.float32, is_pure=True, pack=1
        )
        return total + dot(a, b, nothing)
    return dot(a, b, total)
