"""Faults: the replies whose own work failed, to be ended alone; the engine and all others go on."""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from innervoice.runtime.active_reply import ActiveReply

log = logging.getLogger("innervoice")


class Faults:
    """Collects the replies that fail during a step. The core ends them when the step is over.

    A lost device (torch.AcceleratorError) belongs to no reply.
    """

    def __init__(self) -> None:
        self._failed: list[ActiveReply] = []

    def owning(self, reply: ActiveReply) -> _Owner:
        """A block whose exceptions are the end of this reply, and of no other."""
        return _Owner(self, reply)

    def fail(self, reply: ActiveReply, error: BaseException) -> None:
        """Take no more of a reply: its end is an error, and sound that is not made yet is left out."""
        log.warning("reply %s failed", reply.reply_id, exc_info=error)
        reply.error = f"a step of this reply failed: {str(error) or type(error).__name__}"
        reply.finish = "error"
        self._failed.append(reply)

    def take(self) -> list[ActiveReply]:
        """The replies that have failed since the last call."""
        failed, self._failed = self._failed, []
        return failed


class _Owner:
    """See `Faults.owning`. A class, because it stands around every token."""

    __slots__ = ("_faults", "_reply")

    def __init__(self, faults: Faults, reply: ActiveReply) -> None:
        self._faults = faults
        self._reply = reply

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, torch.AcceleratorError):
            return False
        self._faults.fail(self._reply, error)
        return True
