"""The listener's clock: sound that was sent and heard, and the time at which the player runs dry.

Reads no clock.
"""

from __future__ import annotations

import math


class Playback:
    """The playback of one reply.

    The player is assumed to start with the first sound it gets and to play in real time. Once it reports
    (`acknowledge`), its report counts, and the assumption goes on from there.
    """

    def __init__(self) -> None:
        self.sent_s = 0.0  # sound that was sent
        self.underrun_s = 0.0  # the longest silence so far, of those that were assumed
        self._dry_s = -math.inf  # the time at which all of it is played
        self.acknowledged_s = 0.0  # the player's last report
        self._most_heard_s = math.inf  # of a player that was stopped

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to hear."""
        return self.sent_s > 0

    @property
    def dry_s(self) -> float:
        """The time at which the player has played all that was sent; -inf before the first sound."""
        return self._dry_s

    def send(self, now: float, sound_s: float) -> float:
        """Send sound_s seconds of sound -> seconds for which the player has been silent before them, 0 for
        the first.
        """
        silence_s = max(0.0, now - self._dry_s) if self.has_begun else 0.0
        self.underrun_s = max(self.underrun_s, silence_s)
        self._dry_s = max(now, self._dry_s) + sound_s
        self.sent_s += sound_s
        return silence_s

    def acknowledge(self, now: float, played_s: float) -> None:
        """Take the player's report: played_s seconds of this reply in all.

        A smaller number than the last changes nothing.

        Raises ValueError, nothing changed, for NaN, a negative number, or more than was sent (by over a
        millisecond).
        """
        if not 0 <= played_s < math.inf:
            raise ValueError(f"played_ms is {1e3 * played_s:g}: it must be 0 or more")
        if played_s > self.sent_s + 1e-3:
            raise ValueError(
                f"played_ms is {1e3 * played_s:.0f} and only {1e3 * self.sent_s:.0f} ms were sent"
            )
        if played_s < self.acknowledged_s:
            return
        self.acknowledged_s = played_s
        if self.has_begun:
            self._dry_s = now + max(0.0, self.sent_s - played_s)

    def heard_s(self, now: float) -> float:
        """Seconds of this reply that the listener has heard."""
        if not self.has_begun:
            return 0.0
        heard_s = max(self.acknowledged_s, self.sent_s - max(0.0, self._dry_s - now))
        return min(self.sent_s, heard_s, self._most_heard_s)

    def stop(self, heard_s: float) -> None:
        """Stop the player, which has played heard_s seconds: no more of this reply will be heard."""
        self._most_heard_s = min(self._most_heard_s, heard_s)

    def unplayed_s(self, now: float) -> float:
        """Seconds that were sent and are not heard yet."""
        return self.sent_s - self.heard_s(now)
