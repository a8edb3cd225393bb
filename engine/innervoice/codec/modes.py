"""Modes of torch that belong to a thread: code that runs on a caller's thread computes as the engine's own do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes(*, inference: bool = True) -> Iterator[None]:
    """Compute without gradients and without the caller's autocast; inference: in torch's inference mode.

    Tensors that are made in inference mode cannot be written outside of it.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(inference))
        modes.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        yield
