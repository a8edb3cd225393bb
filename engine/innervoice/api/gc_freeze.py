"""What an engine has loaded is left out of garbage collection while the engine is open.

A full collection walks every object of the process, some 200,000 with PyTorch's: a tenth of a second without a sound on two slow
cores, when replies have made enough new ones to set it off. Frozen ones are not walked.
"""

from __future__ import annotations

import gc
import threading

_lock = threading.Lock()
_num_held = 0


def freeze() -> None:
    """Freeze what there is, for an engine that opens."""
    global _num_held
    with _lock:
        _num_held += 1
        gc.freeze()


def thaw() -> None:
    """An engine has closed: what it leaves may be collected; what others hold is frozen again."""
    global _num_held
    with _lock:
        _num_held -= 1
        gc.unfreeze()
        if _num_held:
            gc.collect()  # before the garbage is frozen with the rest
            gc.freeze()
