"""The schedule: golden traces, an independent interpreter on random schedules, refusals, caps, segments, presets, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_schedule import Naive
from random_schedules import SIZE, VOCAB, VOCABULARY, schedules
from safetensors.numpy import load_file

from innervoice.schedule import (
    PRESETS,
    Cursor,
    FreeCursor,
    Schedule,
    ScheduleError,
    Segment,
    TokenKind,
    compile_schedule,
    make_cursor,
    replay,
)
from innervoice.types import Sampling, Vocabulary


def test_golden_traces(data_dir: Path) -> None:
    traces = json.loads((data_dir / "golden" / "schedule_traces.json").read_text())
    logits = load_file(data_dir / "golden" / "schedule_traces.safetensors")["logits"]
    assert len(traces) == 240
    for trace, rows in zip(traces, logits, strict=True):
        ids, kinds = replay(trace["schedule"], trace["vocab"], rows, trace["max_new_tokens"])
        assert ids == trace["ids"]
        assert kinds == trace["kinds"]


@settings(max_examples=400, deadline=None)
@given(
    schedule=schedules(),
    absent=st.sets(st.sampled_from(["open", "close", "done"])),
    caps=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 2**32 - 1),
    limit=st.integers(1, 60),
)
def test_random_schedules_equal_the_naive_interpreter(
    schedule: dict[str, Any], absent: set[str], caps: list[int], seed: int, limit: int
) -> None:
    vocab = {**VOCAB, **dict.fromkeys(absent)}
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(SIZE), (60, 1)), axis=1)
    logits[:, 30:] += rng.integers(0, 12, size=(60, SIZE - 30))  # the special ids come often enough
    logits = logits * 40 + np.arange(SIZE)  # no ties
    assert replay(schedule, vocab, logits, limit, caps) == Naive(schedule, vocab, logits, limit, caps).run()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"cycle": []}, "schedule.cycle is empty"),
        ({"cycle": [["song", 3]]}, "schedule.cycle[0].kind is 'song'"),
        ({"cycle": [["transcript", 0], ["speech", 3]]}, "schedule.cycle[0].budget is 0"),
        ({"cycle": [["transcript", -2], ["speech", 3]]}, "schedule.cycle[0].budget is -2"),
        ({"cycle": [["transcript", 2.5], ["speech", 3]]}, "schedule.cycle[0].budget is 2.5"),
        ({"cycle": [["transcript", True], ["speech", 3]]}, "schedule.cycle[0].budget is True"),
        ({"cycle": [["transcript", 3], ["speech", None]]}, "schedule.cycle[1].budget is null"),
        ({"cycle": [["reflection", 3]]}, "nothing can run"),
        ({"prologue": [["speech", 3]], "cycle": [["transcript", 3], ["reflection", 3]]}, "nothing can run"),
        ({"cycle": [{"kind": "forced", "as": "transcript", "ids": [36]}]}, "36 is outside"),
        ({"cycle": [{"kind": "forced", "as": "speech", "ids": [3]}]}, "3 is outside the speech ids [20, 30)"),
        ({"cycle": [{"kind": "forced", "as": "song", "ids": [3]}]}, "schedule.cycle[0].as is 'song'"),
        ({"cycle": [{"kind": "forced", "as": "speech", "ids": []}]}, "schedule.cycle[0].ids is empty"),
        ({"cycle": [["speech", 3]], "first": [1, 2]}, "schedule.first has 2 budgets"),
        ({"cycle": [["speech", 3]], "first": [0]}, "schedule.first[0] is 0"),
        (
            {"cycle": [{"kind": "forced", "ids": [3]}], "first": [4]},
            "schedule.first[0] is a budget for a forced segment",
        ),
        ({"cycle": [["speech", 3]], "floor": -1}, "schedule.floor is -1"),
        (
            {"cycle": [{"kind": "speech", "budget": 3, "sampling": {"seed": 1}}]},
            "schedule.cycle[0].sampling.seed belongs to",
        ),
        ({"cycle": [["speech", 3]], "reflect": "maybe"}, "schedule.reflect is 'maybe'"),
        ({"cycle": [["speech", 3]], "reflection_weight": 0}, "schedule.reflection_weight is 0"),
        ({"cycle": [["speech", 3]], "reflection_weight": float("inf")}, "schedule.reflection_weight is inf"),
        ({"cycle": [["speech", 3]], "tokens": {"open": 99}}, "schedule.tokens.open: id 99"),
    ],
)
def test_compile_refuses(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        compile_schedule(Schedule.from_dict(schedule), VOCABULARY)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_endless_reflection_needs_an_end() -> None:
    schedule = {
        "prologue": [["reflection", None]],
        "cycle": [["speech", 2]],
        "tokens": {"close": None, "done": None},
    }
    with pytest.raises(
        ScheduleError, match=r"schedule.prologue\[0\].budget is null and there is neither a close nor a done"
    ):
        compile_schedule(Schedule.from_dict(schedule), VOCABULARY)


@pytest.mark.parametrize("name", ["open", "close"])
def test_reflection_without_its_tokens(name: str) -> None:
    bare = Vocabulary(**{**VOCABULARY.__dict__, name: None})
    with pytest.raises(ScheduleError, match=f"no '{name}' token"):
        compile_schedule(Schedule.preset("stitch_s"), bare)
    compile_schedule(Schedule.preset("stitch_s", tokens={name: None}), bare)
    compile_schedule(Schedule.preset("stitch_s", reflection="off"), bare)


def test_token_strings_are_resolved() -> None:
    schedule = Schedule.preset("stitch_s", tokens={"open": "<think>"})
    assert compile_schedule(schedule, VOCABULARY, {"<think>": 7}.get).vocabulary.open == 7
    with pytest.raises(ScheduleError, match="the tokenizer has no token '<think>'"):
        compile_schedule(schedule, VOCABULARY, {}.get)


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown key 'budget'"):
        Schedule.from_dict({"cycle": [["speech", 3]], "budget": 3})
    with pytest.raises(ValueError, match="unknown key 'id'"):
        Schedule.from_dict({"cycle": [{"kind": "forced", "id": [3]}]})
    with pytest.raises(ValueError, match="unknown key 'opening'"):
        Schedule.from_dict({"cycle": [["speech", 3]], "tokens": {"opening": 3}})


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "fixed_ratio"])
def test_presets_compile_and_round_trip(name: str, tmp_path: Path) -> None:
    schedule = Schedule.preset(name, floor=3)
    compile_schedule(schedule, VOCABULARY)
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule


def test_presets_are_as_published() -> None:
    def cycle(name: str, **changes: Any) -> list[Any]:
        return Schedule.preset(name, **changes).to_dict()["cycle"]

    assert cycle("interleaved") == [["transcript", 13], ["speech", 26]]
    assert cycle("stitch_r") == [["reflection", 100], ["transcript", 13], ["speech", 26]]
    assert cycle("stitch_s") == [["transcript", 13], ["speech", 26], ["reflection", 100]]
    assert cycle("reempathy") == [["transcript", 13], ["speech", 26], ["reflection", 15]]
    assert cycle("reempathy", reflect_first=True) == [["reflection", 15], ["transcript", 13], ["speech", 26]]
    assert cycle("thinking_in_speaking") == [["transcript", 2], ["reflection", 8]]
    assert cycle("fixed_ratio", transcript_budget=1, speech_budget=4) == [["transcript", 1], ["speech", 4]]
    assert Schedule.preset("think_first").to_dict()["prologue"] == [["reflection", None]]
    with pytest.raises(ValueError, match="unknown schedule 'stitch'"):
        Schedule.preset("stitch")
    with pytest.raises(ValueError, match="fixed_ratio"):
        Schedule.preset("fixed_ratio")
    with pytest.raises(ValueError, match="tempo"):
        Schedule.preset("stitch_s", tempo=3)


def test_json_with_sampling_and_forced_segments(tmp_path: Path) -> None:
    schedule = Schedule(
        cycle=(
            Segment("transcript", 3, sampling=Sampling(temperature=0.5)),
            Segment("forced", ids=(4, 5), voice_as="transcript"),
        ),
        first=(1, None),
        reflection=7,
        reflection_weight=1.1,
    )
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule
    program = compile_schedule(schedule, VOCABULARY)
    assert program.samplings == (Sampling(temperature=0.5),) * 2  # first pass and cycle
    cursor = Cursor(program)
    assert cursor.sampling == Sampling(temperature=0.5)


def test_lowering_the_cap_closes_at_once() -> None:
    cursor = Cursor(compile_schedule(Schedule.preset("stitch_r", reflection_budget=9), VOCABULARY))
    cursor.emit_forced()
    for _ in range(4):
        cursor.draw(1)
    cursor.lower_cap(6)
    assert cursor.forced is None
    cursor.draw(1)
    cursor.lower_cap(3)  # already past it
    assert cursor.forced == 32
    assert cursor.emit_forced().kind is TokenKind.CLOSE
    cursor.lower_cap(0)  # outside a reflection: nothing
    assert cursor.kind is TokenKind.TRANSCRIPT


def test_lowering_the_cap_to_nothing_before_the_first_token_and_to_the_floor() -> None:
    program = compile_schedule(Schedule.preset("stitch_r", floor=2), VOCABULARY)
    cursor = Cursor(program)
    cursor.lower_cap(0)
    assert [cursor.emit_forced().kind, cursor.draw(1).kind, cursor.draw(1).kind] == [
        TokenKind.OPEN,
        TokenKind.REFLECTION,
        TokenKind.REFLECTION,
    ]  # type: ignore[union-attr]
    assert cursor.forced == 32
    cursor = Cursor(compile_schedule(Schedule.preset("stitch_r"), VOCABULARY))
    cursor.lower_cap(0)
    assert [cursor.emit_forced().token, cursor.emit_forced().token] == [31, 32]


def test_segment_numbers() -> None:
    """A discarded transcript takes no number, and a late done belongs to the reflection it ends."""
    cursor = Cursor(compile_schedule(Schedule.preset("stitch_r", speech_budget=2), VOCABULARY))
    seen = [cursor.emit_forced(), cursor.draw(1), cursor.draw(32), cursor.draw(33)]
    assert [(e.kind.label, e.segment) for e in seen if e] == [
        ("open", 0),
        ("reflection", 0),
        ("close", 0),
        ("done", 0),
    ]
    assert cursor.draw(25) is None
    after = [cursor.draw(25), cursor.draw(25), cursor.draw(25), cursor.draw(30)]
    assert [(e.kind.label, e.segment) for e in after if e] == [("speech", 1)] * 3 + [("end", 2)]
    assert cursor.is_done


@pytest.mark.parametrize("name", ["interleaved", "stitch_r", "stitch_s"])
def test_logits_that_are_offered_hold_whatever_is_drawn_from_them(name: str) -> None:
    """Of a discarded draw and of the one that follows it."""
    random, discarded, narrow = Random(name), 0, 0
    for _ in range(40):
        cursor = Cursor(compile_schedule(Schedule.preset(name), VOCABULARY))
        for _ in range(200):
            if cursor.is_done:
                break
            if cursor.forced is not None:
                cursor.emit_forced()
                continue
            offered = {token for low, high in cursor.offered for token in range(low, high)}
            narrow += len(offered) < VOCABULARY.size
            emission = None
            while emission is None and not cursor.is_done and cursor.forced is None:
                allowed = [token for token in range(VOCABULARY.size) if token in cursor.mask]
                assert set(allowed) <= offered
                emission = cursor.draw(random.choice(allowed))
                discarded += emission is None
    assert discarded > 5 and narrow > 100


def test_the_done_offer_is_withdrawn_by_a_forced_token() -> None:
    schedule = Schedule(
        cycle=(
            Segment("reflection", 4),
            Segment("forced", ids=(3,), voice_as="transcript"),
            Segment("transcript", 2),
        )
    )
    cursor = Cursor(compile_schedule(schedule, VOCABULARY))
    cursor.emit_forced()
    cursor.draw(32)
    assert cursor.forced == 3
    cursor.emit_forced()
    assert 33 not in cursor.mask


def test_ignore_eos_takes_the_end_of_turn_away() -> None:
    program = compile_schedule(Schedule(cycle=(Segment("speech", 3),)), VOCABULARY)
    assert 30 in Cursor(program).mask
    assert 30 not in Cursor(program, ignore_eos=True).mask


def test_free_decoding_labels_and_ends() -> None:
    program = compile_schedule(Schedule(cycle=(), guided=False), VOCABULARY)
    cursor = make_cursor(program)
    assert isinstance(cursor, FreeCursor)
    kinds = [cursor.draw(token) for token in (1, 31, 2, 33, 32, 33, 25, 30)]
    labels = ["transcript", "open", "reflection", "done", "close", "transcript", "speech", "end"]
    assert [e.kind.label for e in kinds] == labels
    assert [e.segment for e in kinds] == [0, 1, 1, 1, 1, 2, 3, 4]
    assert cursor.is_done
    cursor = make_cursor(program, ignore_eos=True)
    cursor.draw(30)
    assert not cursor.is_done


def test_replay_checks_its_arguments() -> None:
    schedule = {"cycle": [["speech", 3]]}
    with pytest.raises(ValueError, match=r"expected \[T, V\]"):
        replay(schedule, VOCAB, np.zeros(SIZE), 3)
    with pytest.raises(ValueError, match="logits hold 2 rows"):
        replay(schedule, VOCAB, np.zeros((2, SIZE)), 3)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        replay(schedule, VOCAB, np.zeros((2, SIZE)), 0)
    with pytest.raises(ValueError, match="kernel is 'cuda': use host or triton"):
        replay(schedule, VOCAB, np.zeros((2, SIZE)), 3, kernel="cuda")


@pytest.mark.parametrize("guided", [True, False])
def test_a_weight_that_has_no_logarithm_is_refused(guided: bool) -> None:
    cycle = (Segment("speech", 3),)
    with pytest.raises(ScheduleError, match="reflection_weight is 0: it must be a finite number above 0"):
        compile_schedule(Schedule(cycle=cycle, guided=guided, reflection_weight=0), VOCABULARY)


def test_a_schedule_knows_the_preset_that_it_equals() -> None:
    for name in PRESETS:
        budgets = {"transcript_budget": 3, "speech_budget": 9} if name == "fixed_ratio" else {}
        made = Schedule.preset(name, **budgets)
        assert made.preset_name == (None if budgets else name)
    assert Schedule.preset("stitch_s", reflection_budget=7).preset_name is None
