"""Admission: the number of sessions that a server holds, and whether it takes more."""

from __future__ import annotations

import threading

from innervoice.server.errors import ApiError

RETRY_S = 5.0  # after which a refused client may ask again


class Slot:
    """The place of one session of the engine among those that the server holds.

    is_counted: False: of a connection that may bring no session of its own.
    """

    def __init__(self, admission: Admission, *, is_counted: bool = True) -> None:
        self._admission = admission
        self.is_counted = is_counted
        self._is_released = not is_counted
        self.is_kept = False

    def keep(self) -> None:
        """Leave the release to the caller: the session outlives its connection."""
        self.is_kept = True

    def release(self) -> None:
        """Give the place back; any number of times."""
        if not self._is_released:
            self._is_released = True
            self._admission._release()


class Admission:
    """Counts sessions up to a limit, and refuses all once the server drains. Any thread."""

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self._lock = threading.Lock()
        self._num_held = 0
        self._is_draining = False

    @property
    def num_held(self) -> int:
        """Sessions that hold a slot."""
        return self._num_held

    @property
    def is_draining(self) -> bool:
        """Whether the server is shutting down."""
        return self._is_draining

    @property
    def has_room(self) -> bool:
        """Whether a session would be taken now."""
        return not self._is_draining and self._num_held < self.max_sessions

    def drain(self) -> None:
        """Refuse all sessions from now on."""
        self._is_draining = True

    def check(self) -> None:
        """Raise ApiError (503) once the server drains."""
        if self._is_draining:
            raise draining()

    def hold(self, *, or_beyond: bool = False) -> Slot:
        """Take a slot. Raises ApiError: 503 once the server drains, 429 while all are taken.

        or_beyond: while all are taken, give one that does not count, to a connection that comes back to a
        session that holds a slot already.
        """
        self.check()
        with self._lock:
            if self._num_held >= self.max_sessions and or_beyond:
                return Slot(self, is_counted=False)
            if self._num_held >= self.max_sessions:
                raise ApiError(
                    "session_limit_reached",
                    f"all {self.max_sessions} sessions are in use: try again later",
                    type="rate_limit_error",
                    status=429,
                    retry_after_s=RETRY_S,
                )
            self._num_held += 1
        return Slot(self)

    def _release(self) -> None:
        with self._lock:
            self._num_held -= 1


def draining() -> ApiError:
    """The refusal of requests once the server drains."""
    return ApiError(
        "server_draining",
        "the server is shutting down: connect again",
        type="server_error",
        status=503,
        retry_after_s=RETRY_S,
    )
