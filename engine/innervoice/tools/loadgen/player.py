"""A player of sound in real time that plays nothing: it counts how often it runs dry."""

from __future__ import annotations

import asyncio


class Player:
    """Plays from the first sound on, unbuffered, and waits when it runs dry.

    One event loop; times are the loop's.

    num_starved: how often there was nothing to play before more sound came; starved_s: for how long in all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.num_starved = 0
        self.starved_s = 0.0
        self._loop = loop or asyncio.get_running_loop()
        self._dry_s: float | None = None  # when all that came is played
        self._alarm: asyncio.TimerHandle | None = None
        self._is_starving = self._is_over = False
        self._played = asyncio.Event()

    def feed(self, sound_s: float) -> None:
        """Append so many seconds of sound."""
        if sound_s <= 0:
            return
        now = self._loop.time()
        if self._is_starving:
            assert self._dry_s is not None, "it has begun"
            self.num_starved += 1
            self.starved_s += now - self._dry_s
            self._is_starving = False
            self._dry_s = now
        self._dry_s = (now if self._dry_s is None else self._dry_s) + sound_s
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._dry_s, self._run_dry)

    def finish(self) -> None:
        """Nothing more will come: running dry is the end now."""
        self._is_over = True
        if self._dry_s is None or self._is_starving:
            self._played.set()

    async def played(self) -> None:
        """Wait until all of it is played; after `finish`."""
        await self._played.wait()

    def _run_dry(self) -> None:
        if self._is_over:
            self._played.set()
        else:
            self._is_starving = True
