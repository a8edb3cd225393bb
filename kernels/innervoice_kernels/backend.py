"""The choice of an op's implementation: the plain-torch reference, the Triton kernel, the native
code for CPUs, or a library.

The choice for an op is, first that holds: `with use(...)`; the environment's INNERVOICE_BACKEND; Triton for
CUDA tensors where it can be imported and the GPU is new enough; native code for CPU tensors where the op has
any; the reference. INNERVOICE_BACKEND=ref, or triton,paged_attention=ref for single ops. Where "native" is
chosen for all, an op without native code runs its reference. paged_attention has two more, libraries that run
where they are installed and asked for: flash_attn and flashinfer.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from innervoice_kernels.jit import HAS_TRITON, INTERPRETED, triton

REF = "ref"
TRITON = "triton"
NATIVE = "native"
IMPLEMENTATIONS = (REF, TRITON, NATIVE)
# The packages of libraries, and their modules, of which one is enough.
LIBRARIES = {
    "flash_attn": ("flash-attn", "flash_attn", "flash_attn_interface"),
    "flashinfer": ("flashinfer-python", "flashinfer"),
}
_BY_LIBRARY = "paged_attention"  # the op that they have
VARIABLE = "INNERVOICE_BACKEND"
OLDEST = (8, 0)  # bfloat16 on the tensor cores and asynchronous copies

_ALL = "*"
_log = logging.getLogger("innervoice.kernels")


class _Choice:
    """The wishes of one scope, and the implementation chosen for each (op, type of device) so far."""

    def __init__(self, wishes: Mapping[str, str]) -> None:
        self.wishes = dict(wishes)
        self.found: dict[tuple[str, str], str] = {}

    def resolve(self, op: str, device: torch.device, has_native: bool, is_faster: bool = True) -> str:
        name = self.wishes.get(op, self.wishes.get(_ALL))
        if name is None:
            name = (
                NATIVE
                if has_native and is_faster and device.type == "cpu"
                else TRITON
                if _default_is_triton(device)
                else REF
            )
        elif name == TRITON:
            _check_triton(op, device)
        elif name in LIBRARIES:
            _check_library(name, device)
        elif name == NATIVE:
            name = _checked_native(op, device, has_native)
        self.found[op, device.type] = name
        _log.debug("%s on %s: %s", op, device.type, name)
        return name


def _default_is_triton(device: torch.device) -> bool:
    if device.type not in _logged:
        _logged[device.type] = _describe(device)
        _log.info("kernels on %s: %s", device.type, _logged[device.type])
    return _logged[device.type].startswith(TRITON)


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return REF
    if not HAS_TRITON:
        return f"{REF} (Triton is not installed: pip install 'innervoice[gpu]')"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        needed, found = (".".join(map(str, version)) for version in (OLDEST, capability))
        return f"{REF} (the kernels need compute capability {needed}, this GPU has {found})"
    return f"{TRITON} {triton.__version__}"


def _checked_native(op: str, device: torch.device, has_native: bool) -> str:
    if not has_native:
        return REF
    if device.type != "cpu":
        raise ValueError(
            f"{op}: the native implementation was chosen for tensors on {device.type}: move them to the CPU"
        )
    return NATIVE


def _check_triton(op: str, device: torch.device) -> None:
    if not HAS_TRITON:
        raise ValueError(
            f"{op}: the triton implementation was chosen, but Triton is not installed: pip install 'innervoice[gpu]'"
        )
    if device.type not in ("cuda", "meta") and not INTERPRETED:
        raise ValueError(
            f"{op}: the triton implementation was chosen for tensors on {device.type}: "
            "move them to cuda, or set TRITON_INTERPRET=1 to interpret the kernels"
        )


def _check_library(name: str, device: torch.device) -> None:
    package, *modules = LIBRARIES[name]
    if not any(importlib.util.find_spec(module) is not None for module in modules):
        raise ValueError(f"{_BY_LIBRARY}: {name} was chosen, but is not installed: pip install {package}")
    if device.type != "cuda":
        raise ValueError(
            f"{_BY_LIBRARY}: {name} was chosen for tensors on {device.type}: it runs on cuda alone"
        )
    _log.info("%s on %s: %s", _BY_LIBRARY, device.type, name)


def _parse(text: str) -> dict[str, str]:
    """The wishes in "triton,paged_attention=ref"."""
    wishes: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, equals, name = part.partition("=")
        wishes[op.strip() if equals else _ALL] = (name if equals else op).strip()
    return _checked(wishes, f"{VARIABLE}={text}")


def _checked(wishes: dict[str, str], where: str) -> dict[str, str]:
    for op, name in wishes.items():
        known = (*IMPLEMENTATIONS, *LIBRARIES) if op == _BY_LIBRARY else IMPLEMENTATIONS
        if name not in known:
            raise ValueError(f"{where}: there is no implementation {name!r}; there are {', '.join(known)}")
    return wishes


_logged: dict[str, str] = {}
_of_the_process: list[_Choice] = []
_current: ContextVar[_Choice | None] = ContextVar("innervoice_backend", default=None)


def _scope() -> _Choice:
    choice = _current.get()
    if choice is not None:
        return choice
    if not _of_the_process:
        _of_the_process.append(_Choice(_parse(os.environ.get(VARIABLE, ""))))
    return _of_the_process[0]


def choose(op: str, x: Tensor, *, has_native: bool = False, is_faster: bool = True) -> str:
    """The implementation of an op for tensors where x is: found out once for an op and a
    type of device, then looked up.

    has_native: whether the op has native code; is_faster: or else that runs only where it is asked for.
    Both must always say the same.

    Raises ValueError when what was asked for cannot run there.
    """
    choice = _scope()
    return choice.found.get((op, x.device.type)) or choice.resolve(op, x.device, has_native, is_faster)


def is_asked_for(op: str) -> bool:
    """Whether an implementation of an op, or of all, is asked for here, whatever is the default."""
    wishes = _scope().wishes
    return op in wishes or _ALL in wishes


@contextmanager
def use(implementation: str | None = None, **ops: str) -> Iterator[None]:
    """Within, all ops, or those named, run this implementation: use("ref"), use("triton", rms_norm="ref").

    What is not named stays as it was outside. Raises ValueError for an unknown implementation.
    """
    wishes = _scope().wishes if implementation is None else {_ALL: implementation}
    token = _current.set(_Choice(_checked({**wishes, **ops}, "use")))
    try:
        yield
    finally:
        _current.reset(token)
