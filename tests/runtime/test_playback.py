"""The listener's clock, and what an interruption leaves of a history."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.model.pages import PagePool, PageTable
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.runtime.interrupt import count_heard, cut_sequence, estimate_heard_text
from innervoice.runtime.playback import Playback

SPEECH = (100, 200)


def test_a_player_that_says_nothing_plays_in_real_time() -> None:
    playback = Playback()
    assert playback.heard_s(50.0) == 0 and not playback.has_begun
    assert playback.send(10.0, 2.0) == 0.0
    assert playback.dry_s == 12.0 and playback.heard_s(11.5) == 1.5 and playback.unplayed_s(11.5) == 0.5
    assert playback.send(11.0, 1.0) == 0.0 and playback.dry_s == 13.0
    assert playback.send(13.5, 1.0) == 0.5  # half a second of silence
    assert playback.dry_s == 14.5 and playback.underrun_s == 0.5 and playback.heard_s(99.0) == 4.0


def test_a_report_counts_from_then_on() -> None:
    playback = Playback()
    playback.send(10.0, 4.0)
    playback.acknowledge(12.0, 0.5)  # the player began late
    assert playback.heard_s(12.0) == 0.5 and playback.dry_s == 15.5 and playback.heard_s(13.0) == 1.5
    playback.acknowledge(14.0, 0.25)  # an old report
    assert playback.heard_s(14.0) == 2.5
    playback.acknowledge(20.0, 4.0)
    assert playback.heard_s(20.0) == 4.0 and playback.unplayed_s(20.0) == 0.0


@pytest.mark.parametrize(
    ("played", "message"),
    [(-0.1, "0 or more"), (math.nan, "0 or more"), (math.inf, "0 or more"), (4.1, "4000 ms")],
)
def test_impossible_reports_are_refused_and_change_nothing(played: float, message: str) -> None:
    playback = Playback()
    playback.send(0.0, 4.0)
    with pytest.raises(ValueError, match=message):
        playback.acknowledge(1.0, played)
    assert playback.heard_s(1.0) == 1.0 and playback.dry_s == 4.0


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 3)), min_size=1, max_size=20))
def test_heard_and_unplayed_are_what_was_sent(steps: list[tuple[float, float]]) -> None:
    playback, now, silent = Playback(), 0.0, 0.0
    for pause, sound in steps:
        now += pause
        silent = max(silent, playback.send(now, sound))
        assert playback.heard_s(now) + playback.unplayed_s(now) == pytest.approx(playback.sent_s)
        assert 0 <= playback.unplayed_s(now) <= playback.sent_s
    assert playback.underrun_s == silent and playback.heard_s(now + 100) == playback.sent_s


def test_a_token_counts_once_all_of_it_is_played_but_a_frame() -> None:
    assert [count_heard(s, 12.5, 256 / 22050) for s in (0.0, 0.05, 0.068, 0.07, 0.08, 1.0)] == [
        0,
        0,
        0,
        1,
        1,
        12,
    ]
    assert [count_heard(s, 100.0, 0.0, 4) for s in (0.0, 0.03, 0.05, 0.08)] == [0, 0, 4, 8]


def row_of(text: str) -> Sequence:
    """p: prompt, h: hidden, t: transcript, s: speech, e: end of turn."""
    row = Sequence(PageTable(PagePool(64, 4)))
    row.extend(range(text.count("p")))
    number = row.begin_reply(0.0)
    speech, letter = iter(range(*SPEECH)), iter(range(10, 90))
    for kind in text.replace("p", ""):
        role = {"h": TokenRole.HIDDEN, "e": TokenRole.NEUTRAL}.get(kind, TokenRole.SPOKEN)
        row.append(next(speech) if kind == "s" else next(letter), role, number)
    row.table.grow(len(row.ids))
    row.num_cached = len(row.ids) - 1
    return row


def kinds(row: Sequence) -> str:
    names = {TokenRole.HIDDEN: "h", TokenRole.NEUTRAL: "p"}
    spoken = ["s" if SPEECH[0] <= i < SPEECH[1] else "t" for i in row.ids]
    return "".join(names.get(role, kind) for role, kind in zip(row.roles, spoken, strict=True))


@pytest.mark.parametrize(
    ("num", "cut", "reflection", "left", "text", "unheard", "cached"),
    [
        (2, "speech", "drop", "pphttss", 2, 1, 7),
        (2, "speech", "keep", "pphttssh", 2, 1, 7),
        (5, "speech", "drop", "pphttssshttss", 4, 1, 13),
        (5, "transcript", "drop", "pphttssshtss", 3, 0, 10),
        (2, "transcript", "drop", "pphtss", 1, 0, 4),
        (2, "transcript", "keep", "pphtssh", 1, 0, 4),
        (0, "speech", "drop", "pp", 0, 0, 2),
        (0, "transcript", "keep", "pphh", 0, 0, 3),
        (9, "speech", "drop", "pphttssshttsss", 4, 0, 14),
    ],
)
def test_a_history_is_cut_behind_what_was_heard(
    num: int, cut: str, reflection: str, left: str, text: int, unheard: int, cached: int
) -> None:
    row = row_of("pphttssshttsss")
    before = list(row.ids)
    kept = cut_sequence(row, 1, SPEECH, num, cut, reflection, is_over=False)  # type: ignore[arg-type]
    assert kinds(row) == left and (len(kept.text_ids), kept.unheard) == (text, unheard)
    assert kept.num_speech == min(num, 6)
    assert [i for i in before if i in set(row.ids)] == row.ids
    assert row.num_cached == min(cached, 13) and len(row.table.pages) <= -(-len(row.ids) // 4)


def test_a_reply_heard_to_its_end_stays_whole() -> None:
    row = row_of("ppttsse")
    before = list(row.ids)
    assert cut_sequence(row, 1, SPEECH, 2, "transcript", "drop", is_over=True).unheard == 0
    assert row.ids == before


def test_text_is_estimated_in_proportion() -> None:
    assert [estimate_heard_text(10, 20, n) for n in (0, 1, 10, 20)] == [0, 0, 5, 10] and estimate_heard_text(
        10, 0, 0
    ) == 0
