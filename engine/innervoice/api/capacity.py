"""Refusals of a model, or of sessions, that the memory has no room for, with the numbers and the remedy."""

from __future__ import annotations

import errno

import torch

from innervoice.api.available_memory import available_bytes
from innervoice.api.memory_plan import MemoryPlan
from innervoice.types import OutOfCapacity

_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "can't start new thread")


def check_fits(plan: MemoryPlan, max_sessions: int | None) -> None:
    """Raise OutOfCapacity when not one session fits, or fewer than max_sessions; nothing is allocated."""
    if plan.sessions < 1:
        raise OutOfCapacity(
            f"the model does not fit: {_gib(plan.weight_bytes)} of weights, "
            f"{_gib(plan.fixed_bytes - plan.weight_bytes)} of codec and "
            f"{_gib(plan.kv_bytes_per_session)} of cache for a session of {plan.max_model_len} tokens, with "
            f"{_gib(plan.memory_bytes)} left on {plan.device}: lower max_model_len, raise memory_fraction or take a "
            "smaller dtype"
        )
    if max_sessions is not None and plan.sessions < max_sessions:
        raise OutOfCapacity(
            f"max_sessions is {max_sessions}: with {plan.max_model_len} tokens each that needs "
            f"{_gib(_needed_bytes(plan, max_sessions))}, {plan.sessions} sessions fit into the "
            f"{_gib(plan.memory_bytes)} left on {plan.device}: lower max_sessions or max_model_len, or raise "
            "memory_fraction"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of loading says that an allocation failed: Python's, the system's, torch's on a CPU or GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_named or any(word in str(error) for word in _WORDS)


def not_allocated(plan: MemoryPlan, sessions: int, error: BaseException) -> str:
    """Word a failed allocation as a refusal."""
    left = available_bytes(torch.device(plan.device))
    cause = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"the model needs {_gib(_needed_bytes(plan, sessions))} with {sessions} sessions of {plan.max_model_len} tokens, "
        f"and an allocation failed with {_gib(left)} left on {plan.device} ({cause}): lower max_sessions or "
        "max_model_len, or take a smaller dtype"
    )


def _needed_bytes(plan: MemoryPlan, sessions: int) -> int:
    each = plan.kv_bytes_per_session + plan.voice_bytes_per_session + plan.step_bytes_per_session
    return plan.fixed_bytes + sessions * each


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
