"""Names, tags, stop ids and choices of segments: an independent interpreter on random schedules, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_schedule import hold
from random_schedules import SIZE, VOCABULARY, tagged_schedules

from innervoice.schedule import (
    Cursor,
    CursorState,
    Schedule,
    ScheduleError,
    Segment,
    TokenKind,
    compile_schedule,
    make_cursor,
)

CHOICE = {"kind": "choice", "choices": [[1, 2], [1, 3], [4]]}


RANDOM = given(
    schedule=tagged_schedules(),
    absent=st.sets(st.sampled_from(["open", "close", "done"])),
    caps=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 2**32 - 1),
    limit=st.integers(1, 60),
)


@settings(max_examples=150, deadline=None)
@RANDOM
def test_random_schedules_equal_the_naive_interpreter(
    schedule: dict[str, Any], absent: set[str], caps: list[int], seed: int, limit: int
) -> None:
    hold(schedule, absent, caps, seed, limit)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@RANDOM
def test_many_random_schedules_equal_the_naive_interpreter(
    schedule: dict[str, Any], absent: set[str], caps: list[int], seed: int, limit: int
) -> None:
    hold(schedule, absent, caps, seed, limit)


@settings(max_examples=60, deadline=None)
@given(schedule=tagged_schedules())
def test_json_gives_the_schedule_again(schedule: dict[str, Any]) -> None:
    made = Schedule.from_dict(schedule)
    assert Schedule.from_dict(made.to_dict()) == made


def cursor_of(*prologue: dict[str, Any], **fields: Any) -> Cursor:
    schedule = {"prologue": list(prologue), "cycle": [["transcript", 3], ["speech", 2]], **fields}
    cursor = make_cursor(compile_schedule(Schedule.from_dict(schedule), VOCABULARY))
    assert isinstance(cursor, Cursor)
    return cursor


def test_a_tag_of_four_ids_closes_and_its_text_is_certain_late() -> None:
    """A beginning of the tag that comes to nothing is text; one within another is found."""
    part = {"kind": "reflection", "budget": 20, "name": "plan", "open": [5, 6], "close": [1, 1, 2, 3]}
    cursor = cursor_of(part)
    opened = [cursor.emit_forced(), cursor.emit_forced()]
    assert [(e.token, e.kind.label, e.name) for e in opened] == [(5, "open", "plan"), (6, "open", "plan")]
    drawn = [cursor.draw(token) for token in (9, 1, 1, 1, 2, 9, 1, 1, 2, 3)]
    assert [e.matched for e in drawn if e] == [0, 1, 2, 2, 3, 0, 1, 2, 3, 3]
    assert [e.kind.label for e in drawn if e] == ["reflection"] * 9 + ["close"]
    assert {e.name for e in drawn if e} == {"plan"}
    assert cursor.kind is TokenKind.TRANSCRIPT and VOCABULARY.done in cursor.mask


def test_a_cap_completes_the_tag_that_was_begun() -> None:
    cursor = cursor_of({"kind": "reflection", "budget": 20, "open": [], "close": [1, 32, 3]})
    assert 32 not in cursor.mask
    cursor.draw(1)
    assert 32 in cursor.mask
    cursor.draw(32)
    cursor.lower_cap(1)
    closing = cursor.emit_forced()
    assert (closing.token, closing.kind.label, cursor.forced) == (3, "close", None)


def test_a_stop_id_ends_its_segment() -> None:
    cursor = cursor_of({"kind": "reflection", "budget": 9, "stop": [7]}, {"kind": "transcript", "stop": [4]})
    cursor.emit_forced()
    ends = [cursor.draw(token) for token in (1, 7, 2, 4)]
    assert [e.kind.label for e in ends if e] == ["reflection", "close", "transcript", "transcript"]
    assert [e.segment for e in ends if e] == [0, 0, 1, 1]
    cursor.draw(5)
    assert cursor.segment == 2


@pytest.mark.parametrize(("ids", "chosen"), [((1, 2), "[1, 2]"), ((1, 3), "[1, 3]"), ((4,), "[4]")])
def test_a_choice_is_named_with_its_last_token(ids: tuple[int, ...], chosen: str) -> None:
    cursor = cursor_of(CHOICE | {"name": "strategy"})
    seen = []
    for token in ids:
        assert set(cursor.mask.extras) <= {1, 2, 3, 4} and not cursor.mask.ranges
        assert not cursor.is_reflecting
        seen.append(cursor.draw(token))
    assert [(e.choice, e.name, e.kind.label) for e in seen if e] == [
        (chosen if i == len(ids) - 1 else None, "strategy", "reflection") for i in range(len(ids))
    ]
    assert cursor.kind is TokenKind.TRANSCRIPT


def test_what_follows_the_last_fork_is_forced_and_a_state_goes_on_within() -> None:
    """From every position of a choice and of a tag another cursor goes on alike."""
    choice = {"kind": "choice", "choices": [[1, 2, 3, 4], [1, 5, 6]], "name": "intent"}
    cursor = cursor_of(choice, {"kind": "reflection", "budget": 4, "close": [1, 1, 2]})
    chosen, labels = [1, 5, 1, 1, 1, 2], []
    while cursor.kind is not TokenKind.TRANSCRIPT:
        again = CursorState.from_json(cursor.state.to_json())
        cursor = make_cursor(cursor.program, state=again)  # type: ignore[assignment]
        emission = cursor.emit_forced() if cursor.forced is not None else cursor.draw(chosen.pop(0))
        assert emission is not None
        labels.append((emission.token, emission.forced, emission.choice))
    assert labels[:3] == [(1, False, None), (5, False, None), (6, True, "[1, 5, 6]")]
    assert labels[3:] == [(31, True, None)] + [(t, False, None) for t in (1, 1, 1, 2)]


def test_limits_by_name() -> None:
    parts = [{"kind": "reflection", "budget": 9, "name": name} for name in ("feel", "plan")]
    cursor = cursor_of(*parts, limits={"feel": 0, "plan": 1})
    assert cursor.emit_forced().num_skipped == 1
    cursor.draw(1)
    assert cursor.emit_forced().name == "plan" and cursor.granted == [0, 1]


def test_texts_are_spelled_by_the_tokenizer() -> None:
    words = {"calm": [1, 2], "sad": [3], "</think>": [32]}
    part = Segment("reflection", None, open="<think>", close="</think>")
    schedule = Schedule(
        prologue=(part, Segment("choice", choices=("calm", "sad"))), cycle=(Segment("speech", None),)
    )
    program = compile_schedule(schedule, VOCABULARY, {"<think>": 34}.get, words.__getitem__)
    cursor = Cursor(program)
    assert cursor.emit_forced().token == 34 and cursor.draw(32).kind is TokenKind.CLOSE  # type: ignore[union-attr]
    assert set(cursor.mask.extras) == {1, 3, 33}
    cursor.draw(1)
    assert cursor.emit_forced().choice == "calm"
    with pytest.raises(ScheduleError, match="is '<think>', and there is no tokenizer"):
        compile_schedule(schedule, VOCABULARY)


def test_choices_are_drawn_by_their_conditionals() -> None:
    """Chi-square of 5,000 draws against the product of each fork's renormalised conditionals."""
    import torch

    from innervoice_kernels.sampling.sample import Draw, sample

    choices = [[1, 2, 9], [1, 3], [4, 1], [4, 2], [4, 3, 5, 6], [8]]
    program = compile_schedule(
        Schedule.from_dict({"prologue": [CHOICE | {"choices": choices}], "cycle": [["speech", 1]]}),
        VOCABULARY,
    )
    table = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(3))
    table[0, 4] = 3.0  # an id that leads to several texts

    def row_of(path: list[int]) -> int:
        return sum(path) % len(table)

    wanted = []
    for path in choices:
        p = 1.0
        for n in range(len(path)):
            others = sorted({c[n] for c in choices if c[:n] == path[:n]})
            p *= float(torch.softmax(table[row_of(path[:n])][others], 0)[others.index(path[n])])
        wanted.append(p)
    assert abs(sum(wanted) - 1) < 1e-6

    num, counts = 5000, [0] * len(choices)
    cursors, paths = [Cursor(program) for _ in range(num)], [[] for _ in range(num)]  # type: ignore[var-annotated]
    going = list(range(num))
    while going:
        draws = [Draw((), cursors[i].mask.extras, 1.0, seed=i, n=len(paths[i])) for i in going]
        ids, _ = sample(torch.stack([table[row_of(paths[i])] for i in going]), draws)
        after = []
        for i, token in zip(going, ids.tolist(), strict=True):
            paths[i].append(token)
            emission = cursors[i].draw(token)
            while emission is not None and emission.choice is None and cursors[i].forced is not None:
                emission = cursors[i].emit_forced()
                paths[i].append(emission.token)
            if emission is None or emission.choice is None:
                after.append(i)
        going = after
    for path in paths:
        counts[choices.index(path)] += 1
    chi_square = sum((n - num * p) ** 2 / (num * p) for n, p in zip(counts, wanted, strict=True))
    assert chi_square < 20.5, (counts, wanted)  # five degrees of freedom: p above 0.001


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"kind": "choice"}, "prologue[0].choices is empty: a choice needs texts"),
        ({"kind": "choice", "choices": [[1], [1]]}, "choices[1] has the ids of '[1]': write it once"),
        ({"kind": "choice", "choices": [[1, 2], [1]]}, "'[1, 2]' begins with the ids of '[1]'"),
        ({"kind": "choice", "choices": [[]]}, "choices[0] has no ids, so nothing can spell it"),
        ({"kind": "choice", "choices": [[30]]}, "has the id 30, which ends a reply"),
        ({"kind": "choice", "choices": [[99]]}, "choices[0]: id 99 is outside the vocabulary of 36"),
        ({"kind": "choice", "choices": ["sad"]}, "choices[0] is 'sad', and there is no tokenizer"),
        ({"kind": "choice", "choices": [[1]], "as": "speech"}, "a choice is reflection or transcript"),
        ({"kind": "choice", "choices": [[1]], "budget": 3}, "a choice is as long as its text"),
        ({"kind": "transcript", "choices": [[1]]}, "choices is given: only a segment of kind choice"),
        ({"kind": "transcript", "open": [1]}, "open is given, and only a reflection has one"),
        ({"kind": "transcript", "stop": [25]}, "stop: 25 is no transcript id"),
        ({"kind": "speech", "budget": 2, "stop": [5]}, "stop: 5 is no speech id"),
        ({"kind": "forced", "ids": [1], "stop": [5]}, "a forced segment ends by itself"),
        ({"kind": "reflection", "close": [50]}, "close: id 50 is outside the vocabulary"),
        (
            {"kind": "reflection", "name": "a", "budget": 2},
            "prologue[1].name is 'a', as schedule.prologue[0]",
        ),
        ({"kind": "reflection", "name": 3}, "prologue[0].name is 3"),
    ],
)
def test_refusals(segment: dict[str, Any], message: str) -> None:
    twice = [segment, segment] if segment.get("name") == "a" else [segment]
    with pytest.raises(ScheduleError) as error:
        compile_schedule(
            Schedule.from_dict({"prologue": twice, "cycle": [["transcript", 3], ["speech", 3]]}), VOCABULARY
        )
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"mood": 3}, "schedule.limits.mood: no segment has this name"),
        ({"said": 0}, "schedule.limits.said is 0: only a reflection can be left out"),
        ({"way": 2}, "schedule.limits.way: a choice segment has no budget to limit"),
        ({"said": -1}, "schedule.limits.said is -1"),
    ],
)
def test_limits_that_fit_no_segment(limits: dict[str, int], message: str) -> None:
    cycle = [{"kind": "transcript", "budget": 3, "name": "said"}, CHOICE | {"name": "way"}]
    with pytest.raises(ScheduleError) as error:
        compile_schedule(Schedule.from_dict({"cycle": cycle, "limits": limits}), VOCABULARY)
    assert message in str(error.value)


def test_reflections_with_tags_of_their_own_need_none_of_the_checkpoint() -> None:
    bare = VOCABULARY.__class__(**{**VOCABULARY.__dict__, "open": None, "close": None})
    own = Segment("reflection", 3, open=(1,), close=(2, 3))
    compile_schedule(Schedule(cycle=(own, Segment("speech", 2))), bare)
    with pytest.raises(ScheduleError, match="names no 'open' token"):
        compile_schedule(Schedule(cycle=(own, Segment("reflection", 3), Segment("speech", 2))), bare)
