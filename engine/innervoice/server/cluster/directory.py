"""Directory: which replica has a session, and the session as it was after its last turn."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

MAX_BYTES = 4 * 2**30
MAX_ENTRIES = 1_000_000


@dataclass
class _Entry:
    home: str
    data: bytes | None = field(repr=False)
    until_s: float
    term: int


class Directory:
    """Keys of sessions: resume tokens, and ids of answers' sound.

    The replica that saved a session last, or took it, is its home. A replica that is no longer the home may not
    save any more, so that of two copies one wins. The term of a session counts how often it was taken: a directory
    that has lost its memory knows by it which of two copies went on. A key without a state is moved by whoever saves
    it. Entries that were saved longest ago go first when there are too many. Not safe for several threads.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._clock = clock
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def save(self, key: str, home: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        """Keep a session for its home -> whether it was kept; another replica has it else.

        data: None: the session as it was saved before stays. keep_s: seconds after which it is forgotten. term: how
        often it was taken, as `take` said.
        """
        known = self._find(key)
        if known is not None and known.home != home and known.data is not None and known.term >= term:
            return False
        if data is None and known is not None:
            data = known.data
        self._drop(key)
        self._entries[key] = _Entry(home, data, self._clock() + keep_s, term)
        self.num_bytes += len(data or b"")
        self._make_room()
        return True

    def home(self, key: str) -> str | None:
        """Name the replica that has a session, None: there is none."""
        found = self._find(key)
        return None if found is None else found.home

    def take(self, key: str, home: str) -> tuple[bytes, int] | None:
        """Move a session to a new home -> its state after the last turn and its term, None: there is none."""
        found = self._find(key)
        if found is None or found.data is None:
            return None
        found.home = home
        found.term += 1
        return found.data, found.term

    def forget(self, key: str, home: str) -> None:
        """Forget a session that has ended at its home; that of another home stays."""
        found = self._entries.get(key)
        if found is not None and found.home == home:
            self._drop(key)

    def _find(self, key: str) -> _Entry | None:
        found = self._entries.get(key)
        if found is not None and found.until_s <= self._clock():
            self._drop(key)
            return None
        return found

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= len(entry.data or b"")

    def _make_room(self) -> None:
        while len(self._entries) > self._max_entries or self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))


def shard_of(key: str, num_shards: int) -> int:
    """The number of the directory that has a key, of several that share the keys evenly."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "little") % num_shards
