"""torch.compile as gpt-fast sets it: the whole function in one graph, CUDA graphs, tiles found by coordinate descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

OPTIONS = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}


def whole(
    function: Callable[..., Tensor], kept: Iterable[Tensor], device: torch.device | str
) -> Callable[..., Tensor]:
    """Compile a function whole, which fails where its graph would break.

    kept: the weights and caches that it reads or writes, which stay where they are; of any other tensor a CUDA graph copies
    the contents before each replay, and one that is written keeps the function from being captured at all. On a CPU the
    function is traced whole and no code is generated, which takes seconds in place of minutes.
    """
    for tensor in kept:
        torch._dynamo.mark_static_address(tensor, guard=False)
    on_gpu = torch.device(device).type == "cuda"
    generated: dict[str, Any] = {"options": OPTIONS} if on_gpu else {"backend": "eager"}
    return torch.compile(function, fullgraph=True, **generated)
