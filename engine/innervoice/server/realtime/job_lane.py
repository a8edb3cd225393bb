"""JobLane: jobs of one session that run one after another, in the order in which they were given."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

Job = Callable[[], Awaitable[None]]
MAX_JOBS = 256


class JobLane:
    """A queue of jobs and the task that runs them. All methods run on the event loop.

    on_failure: gets what a job raised; the lane goes on.
    """

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        self._jobs: deque[Job] = deque()
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def is_idle(self) -> bool:
        """Whether no job waits or runs."""
        return self._idle.is_set()

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.append(job)
        if len(self._jobs) >= MAX_JOBS:
            self._has_room.clear()
        if self._idle.is_set():
            self._idle.clear()
            self._task = asyncio.create_task(self._run())

    async def room(self) -> None:
        """Wait until few enough jobs wait for more of them: a client's events cause no more until then."""
        await self._has_room.wait()

    async def drained(self) -> None:
        """Wait until no job waits or runs."""
        await self._idle.wait()

    def clear(self) -> None:
        """Forget the jobs that have not begun."""
        self._jobs.clear()
        self._has_room.set()

    async def _run(self) -> None:
        try:
            while self._jobs:
                job = self._jobs.popleft()
                if len(self._jobs) < MAX_JOBS:
                    self._has_room.set()
                try:
                    await job()
                except Exception as error:
                    self._on_failure(error)
        finally:
            self._idle.set()
