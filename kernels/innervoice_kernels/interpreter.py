"""A patch that Triton's interpreter needs beside numpy 2.4, which no longer takes an array
of one element for a number.
"""

from __future__ import annotations

import importlib
from typing import Any


def mend() -> None:
    """Let bounds of loops be numbers known at run time."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched
