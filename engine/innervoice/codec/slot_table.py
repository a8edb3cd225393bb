"""The slots of a streaming codec: the session that holds each, and its state."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar


class Slot(NamedTuple):
    """A key made up by the table.

    number: of the session among all, so that a slot used after its release is noticed.
    """

    place: int
    number: int


@dataclass(kw_only=True)
class SlotSession:
    """The table's record of a session: its key and its place in slot-batched tensors.

    is_finished: no more input will come. is_done: its last piece was made.
    """

    key: Hashable
    place: int
    is_finished: bool = False
    is_done: bool = False


_Key = TypeVar("_Key", bound=Hashable)
_Session = TypeVar("_Session", bound=SlotSession)


class SlotTable(Generic[_Key, _Session]):
    """Sessions by key, in the order they were opened in. noun: what messages call a session."""

    def __init__(self, noun: str, num_slots: int) -> None:
        self.num_slots = num_slots
        self.errors: dict[_Key, str] = {}
        self._noun = noun
        self._sessions: dict[_Key, _Session] = {}
        self._num_opened = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> Collection[_Session]:
        """All open sessions."""
        return self._sessions.values()

    def free_place(self) -> int:
        """The first place that no session holds. Raises ValueError when all slots are taken."""
        taken = {session.place for session in self._sessions.values()}
        free = next((place for place in range(self.num_slots) if place not in taken), None)
        if free is None:
            raise ValueError(
                f"all {self.num_slots} slots are taken: "
                f"close a {self._noun} first, or make room for more slots"
            )
        return free

    def new_slot(self, place: int | None = None) -> Slot:
        """A key for a session at that place, or at the first free one.

        Raises ValueError when all slots are taken.
        """
        slot = Slot(self.free_place() if place is None else place, self._num_opened)
        self._num_opened += 1
        return slot

    def refuse_open(self, key: _Key) -> None:
        """Raise ValueError when the key is in use."""
        if key in self._sessions:
            raise ValueError(f"{self._noun} {key!r} is open already: close it first or use another key")

    def add(self, key: _Key, session: _Session) -> _Session:
        """Open a session at its place."""
        self._sessions[key] = session
        return session

    def fork(self, key: _Key, new_key: _Key, place: int) -> _Session:
        """Open a copy of a session's record at another place; the caller copies
        what the record only refers to.
        """
        return self.add(new_key, replace(self.unbroken(key), key=new_key, place=place))

    def find(self, key: _Key) -> _Session:
        """The session of a key. Raises ValueError when it is not open."""
        session = self._sessions.get(key)
        if session is None:
            raise ValueError(f"{self._noun} {key!r} is not open: open it first")
        return session

    def holds(self, session: _Session) -> bool:
        """Whether this very session is open, and not a later one of its key."""
        return any(session is one for one in self._sessions.values())

    def unbroken(self, key: _Key) -> _Session:
        """The session of a key. Raises ValueError when it is not open, or broke."""
        session = self.find(key)
        if key in self.errors:
            raise ValueError(f"{self._noun} {key!r}: {self.errors[key]}")
        return session

    def unfinished(self, key: _Key) -> _Session:
        """The session of a key.

        Raises ValueError when it takes no more input: not open, broken or finished.
        """
        session = self.unbroken(key)
        if session.is_finished:
            raise ValueError(f"{self._noun} {key!r} is finished: it takes no more input")
        return session

    def chosen(self, keys: Collection[_Key] | None) -> list[_Session]:
        """The sessions of these keys, each once, or all. Raises ValueError for a key that is not open."""
        if keys is None:
            return list(self._sessions.values())
        return [self.find(key) for key in dict.fromkeys(keys)]

    def fail(self, key: _Key, error: str) -> None:
        """End a session that broke. error: the sentence that says why."""
        session = self.find(key)
        session.is_finished = session.is_done = True
        self.errors[key] = error

    def close(self, key: _Key) -> _Session:
        """Release a session's slot, whatever its state. Raises ValueError when it is not open."""
        session = self.find(key)
        del self._sessions[key]
        self.errors.pop(key, None)
        return session
