"""Leaves what an engine has loaded out of garbage collection while the engine is open.

A full collection walks every object of the process, some 200,000 with PyTorch's: a tenth of a
second without sound on two slow cores, whenever replies have made enough new objects to set it off.
Frozen objects are not walked.
"""

from __future__ import annotations

import gc
import threading

# `gc.freeze` acts on the whole process, so the count of those who want it does too.
_lock = threading.RLock()  # a collection below it may end another engine, and release its heap
_num_frozen = 0


class FrozenHeap:
    """Keeps all objects that exist at `freeze` out of garbage collection, until `release`."""

    def __init__(self) -> None:
        self._is_held = False

    def freeze(self) -> None:
        """Leave what exists now out of collections. Once."""
        global _num_frozen
        self._is_held = True
        with _lock:
            _num_frozen += 1
            gc.freeze()

    def release(self) -> None:
        """Let the garbage be collected; what other frozen heaps hold stays frozen.

        Any number of times, from any thread.
        """
        global _num_frozen
        with _lock:
            if not self._is_held:
                return
            self._is_held = False
            _num_frozen -= 1
            gc.unfreeze()
            if _num_frozen:
                gc.collect()  # before the garbage is frozen with the rest
                gc.freeze()
