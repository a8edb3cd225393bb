"""The few exceptions a caller may see besides ValueError and FileNotFoundError (bad input) and OSError."""

from __future__ import annotations


class RequestFailed(RuntimeError):
    """One request ended in an error; the engine lives on."""


class OutOfCapacity(RuntimeError):
    """A request was refused because it does not fit; the message holds the numbers.

    retry_after_s: seconds after which the same request may fit; infinity when it never will.
    """

    def __init__(self, message: str, retry_after_s: float = float("inf")) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class EngineDead(RuntimeError):
    """The core stopped on a failure that belongs to no single request; the cause is chained."""
