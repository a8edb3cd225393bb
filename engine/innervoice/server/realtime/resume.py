"""Resumable: conversations that a new connection may take over, by token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.ids import new_id

T = TypeVar("T")
MAX_ENTRIES = 4096
MAX_BYTES = 2**29  # of all that is kept without a session of the engine
DROP = Callable[[], Awaitable[None]]


@dataclass
class KeptEntry(Generic[T]):
    """A value under a token; drop: gives it back when no connection takes it in time."""

    token: str
    value: T
    drop: DROP
    num_bytes: int = 0
    timer: asyncio.TimerHandle | None = None


class Resumable:
    """Values under tokens. All methods run on the event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, KeptEntry[Any]] = {}
        self._num_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, token: object) -> bool:
        return token in self._entries

    def add(
        self, value: Any, drop: DROP, grace_s: float | None, token: str | None = None, num_bytes: int = 0
    ) -> str:
        """Keep something -> its token. grace_s: seconds until it is dropped, None: it is in use. num_bytes: its
        size, if that alone bounds how many there are.

        Raises ApiError when too much is kept.
        """
        token = token or new_id("resume")
        is_full = len(self._entries) >= MAX_ENTRIES or self._num_bytes + num_bytes > MAX_BYTES
        if token not in self._entries and is_full:
            raise ApiError("rate_limit_exceeded", "Too many sessions are kept: try again later.", status=429)
        self.forget(token)
        entry = KeptEntry(token, value, drop, num_bytes)
        self._entries[token] = entry
        self._num_bytes += num_bytes
        if grace_s is not None:
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(grace_s, self._expire, token)
        return token

    def find(self, token: str) -> Any:
        """Return what a token stands for. Raises ApiError for an unknown one, and for one whose time is over."""
        entry = self._entries.get(token)
        if entry is None:
            raise ApiError(
                "invalid_resume_token", "There is no session under this token: begin a new one.", "resume"
            )
        return entry.value

    def values(self) -> list[Any]:
        """All that is kept, the longest kept first."""
        return [entry.value for entry in self._entries.values()]

    def forget(self, token: str) -> None:
        """Let a token stand for nothing; what it stood for is not dropped."""
        entry = self._entries.pop(token, None)
        if entry is None:
            return
        self._num_bytes -= entry.num_bytes
        if entry.timer is not None:
            entry.timer.cancel()

    async def close(self) -> None:
        """Drop everything that is kept."""
        for token in list(self._entries):
            self._expire(token)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _expire(self, token: str) -> None:
        entry = self._entries[token]
        self.forget(token)
        task = asyncio.get_running_loop().create_task(_await(entry.drop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _await(drop: DROP) -> None:
    await drop()
