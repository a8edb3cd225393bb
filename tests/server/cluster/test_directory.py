from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.server.cluster.directory import Directory, shard_of


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_lives_where_it_was_saved_and_moves_to_who_takes_it() -> None:
    directory = Directory()
    assert directory.save("s", "a", b"one", 10)
    assert directory.home("s") == "a"
    assert directory.take("s", "b") == (b"one", 1)
    assert directory.home("s") == "b"
    assert not directory.save("s", "a", b"late", 10), "the home before has lost it"
    directory.forget("s", "a")
    assert directory.take("s", "b") == (b"one", 2)
    directory.forget("s", "b")
    assert directory.home("s") is None
    assert directory.take("s", "a") is None


def test_a_session_without_a_state_has_a_home_only() -> None:
    directory = Directory()
    directory.save("s", "a", None, 10)
    assert directory.home("s") == "a"
    assert directory.take("s", "b") is None
    assert directory.home("s") == "a"
    directory.save("s", "a", b"one", 10)
    directory.save("s", "a", None, 10)
    assert directory.take("s", "b") == (b"one", 1)


def test_a_key_without_a_state_is_of_who_saved_it_last() -> None:
    directory = Directory()
    assert directory.save("header", "a", None, 10)
    assert directory.save("header", "b", None, 10)
    assert directory.home("header") == "b"


def test_after_a_loss_of_memory_the_copy_that_was_taken_more_often_wins() -> None:
    directory = Directory()
    assert directory.save("s", "old", b"1", 10, term=0)
    assert directory.save("s", "new", b"2", 10, term=1)
    assert not directory.save("s", "old", b"1", 10, term=0)
    assert directory.take("s", "third") == (b"2", 2)
    assert not directory.save("s", "new", b"3", 10, term=1)


def test_time_and_room_are_bounded() -> None:
    clock = Clock()
    directory = Directory(max_bytes=10, max_entries=3, clock=clock)
    directory.save("short", "a", b"1234", 1)
    clock.now = 1.0
    assert directory.home("short") is None
    assert directory.num_bytes == 0
    for key in "wxyz":
        directory.save(key, "a", b"12", 100)
    assert [directory.home(key) for key in "wxyz"] == [None, "a", "a", "a"], "entries"
    directory.save("x", "a", b"12345678", 100)
    assert [directory.home(key) for key in "xyz"] == ["a", None, "a"], "bytes, and the oldest first"
    directory.save("huge", "a", b"12345678901", 100)
    assert (len(directory), directory.num_bytes) == (0, 0)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["save", "touch", "take", "forget", "wait"]),
        st.sampled_from("pqr"),
        st.sampled_from("ab"),
        st.integers(0, 6),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(MOVES)
def test_any_moves_keep_one_home_and_the_newest_state(moves: list[tuple[str, str, str, int]]) -> None:
    """Against plain dictionaries, which keep all: what the directory has is theirs, and its bytes add up."""
    clock = Clock()
    directory = Directory(max_bytes=12, clock=clock)
    homes: dict[str, str] = {}
    states: dict[str, bytes | None] = {}
    for what, key, home, number in moves:
        if directory.home(key) is None:
            homes.pop(key, None)
            states.pop(key, None)
        assert directory.home(key) == homes.get(key)
        if what == "wait":
            clock.now += number
        elif what == "take":
            found = directory.take(key, home)
            assert (None if found is None else found[0]) == states.get(key)
            if found is not None:
                homes[key] = home
        elif what == "forget":
            directory.forget(key, home)
            if homes.get(key) == home:
                homes.pop(key)
                states.pop(key)
        else:
            data = bytes(number) if what == "save" else None
            kept = directory.save(key, home, data, 1 + number)
            assert kept == (homes.get(key) in (None, home) or states.get(key) is None)
            if kept:
                homes[key] = home
                states[key] = states.get(key) if data is None else data
        assert 0 <= directory.num_bytes <= 12


def test_shards_share_the_keys_evenly_and_forever() -> None:
    assert shard_of("resume_1", 7) == 0
    counts = Counter(shard_of(f"resume_{i}", 4) for i in range(4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert max(counts.values()) < 1100
