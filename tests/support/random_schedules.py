"""Random schedules over a small vocabulary, and some known ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from innervoice.types import Vocabulary

VOCAB = {
    "text": [0, 20], "speech": [20, 30], "eot": 30, "open": 31, "close": 32, "done": 33,
    "tool_open": 34, "tool_close": 35, "tool_between": 7,
}  # fmt: skip
SIZE = 36
VOCABULARY = Vocabulary(
    size=SIZE, text=(0, 20), speech=(20, 30), end_of_turn=30, open=31, close=32, done=33, eos=(30,),
    tool_open=34, tool_close=35, tool_between=7,
)  # fmt: skip

budget = st.integers(1, 6)
reflection = st.tuples(st.just("reflection"), budget).map(list)
transcript = st.tuples(st.just("transcript"), budget).map(list)
tool = st.builds(
    lambda budget, ids: {"kind": "tool", "budget": budget} | ({"ids": ids} if ids else {}),
    budget | st.none(),
    st.lists(st.integers(0, 19), max_size=2),
)
speech = st.tuples(st.just("speech"), budget).map(list)
forced = st.builds(
    lambda kind, ids: {"kind": "forced", "as": kind, "ids": ids},
    st.sampled_from(["reflection", "transcript"]),
    st.lists(st.integers(0, 19), min_size=1, max_size=3),
)


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    """Any schedule that compiles over VOCAB."""
    several = st.one_of(reflection, transcript, speech, forced, reflection, transcript, speech, tool)
    cycle = draw(st.lists(several, min_size=1, max_size=5))
    kinds = {s[0] for s in cycle if isinstance(s, list)}
    if "speech" not in kinds and "transcript" not in kinds:
        cycle.append(draw(speech))
    prologue_kinds = [reflection, forced, reflection, forced, tool] + (
        [speech, transcript] if "speech" in kinds else []
    )
    schedule: dict[str, Any] = {
        "cycle": cycle,
        "prologue": draw(st.lists(st.one_of(*prologue_kinds), max_size=2)),
    }
    if draw(st.booleans()):
        schedule["first"] = [None if isinstance(s, dict) else draw(st.none() | budget) for s in cycle]
    if draw(st.booleans()):
        schedule["floor"] = draw(st.integers(0, 4))
    if draw(st.booleans()):
        schedule["tool"] = draw(st.sampled_from(["on", "on", 1, 4]))
        schedule["parallel_calls"] = draw(st.booleans())
    schedule["reflect"] = draw(st.sampled_from(["on", "on", "off", 0, 1, 3]))
    return schedule


_tags = st.lists(st.sampled_from([0, 1, 2, 32, 34]), max_size=4)


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """A choice of which no text begins with another."""
    ids = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    paths = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    kept = [list(p) for p in paths if not any(p[:n] in paths for n in range(1, len(p)))]
    return {"kind": "choice", "as": draw(st.sampled_from(["reflection", "transcript"])), "choices": kept}


FEEDS = ("a", "b")
feeds = st.fixed_dictionaries({name: st.lists(st.integers(0, 19), max_size=8) for name in FEEDS})
_some = st.integers(1, 4)


@st.composite
def fed(draw: st.DrawFn) -> dict[str, Any]:
    """A segment that takes ids from a feed, which some drawn id may close."""
    kind = draw(st.sampled_from(["reflection", "transcript", "transcript"]))
    made = {
        "kind": "fed",
        "as": kind,
        "feed": draw(st.sampled_from(FEEDS)),
        "budget": draw(_some | st.none()),
    }
    return made | ({"stop": [draw(st.integers(0, 4))]} if draw(st.booleans()) else {})


@st.composite
def fed_schedules(draw: st.DrawFn) -> dict[str, Any]:
    """A tagged schedule with fed segments, which may listen first."""
    schedule = draw(tagged_schedules())
    for part in ("prologue", "cycle"):
        schedule[part] = [
            draw(fed()) if s != "first" and isinstance(s, dict) and s["kind"] == "forced" else s
            for s in schedule[part]
        ]
    if "first" not in schedule:
        place = draw(st.integers(0, len(schedule["cycle"])))
        schedule["cycle"].insert(place, draw(fed()))
    if draw(st.booleans()):
        thought = reflection.map(lambda s: {"kind": s[0], "budget": s[1], "stop": [3]})
        between = draw(st.lists(st.one_of(thought, choices(), fed()), max_size=3))
        schedule["listen"] = [draw(fed()), *between]
    return schedule


@st.composite
def tagged_schedules(draw: st.DrawFn) -> dict[str, Any]:
    """A schedule whose segments have names, tags and stop ids of their own, and which has choices."""
    schedule = draw(schedules())
    number = 0

    def changed(segment: Any) -> Any:
        nonlocal number
        if isinstance(segment, dict):
            return draw(choices()) if segment["kind"] == "forced" and draw(st.booleans()) else segment
        kind, most = segment
        number += 1
        made = {"kind": kind, "budget": most, "name": f"part {number}"}
        if kind == "reflection":
            made |= {name: draw(_tags) for name in ("open", "close") if draw(st.booleans())}
            made |= {"stop": draw(st.lists(st.integers(0, 4), max_size=2))} if draw(st.booleans()) else {}
        elif draw(st.booleans()):
            low = VOCAB[{"transcript": "text", "speech": "speech"}[kind]][0]  # type: ignore[index]
            made |= {"stop": [low + draw(st.integers(0, 3))]}
        return made

    for part in ("prologue", "cycle"):
        schedule[part] = [changed(segment) for segment in schedule[part]]
    schedule["prologue"] += draw(st.lists(choices(), max_size=1))
    names = [s["name"] for s in schedule["prologue"] + schedule["cycle"] if "name" in s]
    if names and draw(st.booleans()):
        schedule["limits"] = {draw(st.sampled_from(names)): draw(st.integers(1, 3))}
    return schedule


TAGGED: list[dict[str, Any]] = [
    {"cycle": [{"kind": "reflection", "budget": 4, "open": [31, 5], "close": [0, 1, 0, 34]}, ["speech", 2]]},
    {"cycle": [{"kind": "reflection", "budget": 5, "close": [0, 0, 1], "stop": [2]}, ["transcript", 2]]},
    {
        "cycle": [
            {"kind": "transcript", "budget": 9, "stop": [0, 1]},
            {"kind": "speech", "budget": 4, "stop": [20]},
        ]
    },
    {
        "prologue": [
            ["reflection", 1],
            {"kind": "choice", "choices": [[0, 1, 2], [0, 2], [1, 1, 1, 3], [3]]},
            {"kind": "choice", "as": "transcript", "choices": [[n, 2] for n in range(0, 18, 2)]},
        ],
        "cycle": [{"kind": "reflection", "budget": 3, "close": [0, 1]}, ["transcript", 2]],
    },
]
FED: list[dict[str, Any]] = [
    {
        "listen": [
            {"kind": "fed", "feed": "a", "budget": 2, "stop": [2]},
            {"kind": "reflection", "budget": 3, "stop": [2]},
        ],
        "cycle": [["transcript", 2], ["speech", 2]],
    },
    {"cycle": [{"kind": "fed", "as": "transcript", "feed": "a", "budget": 2}, ["speech", 3]]},
    {"cycle": [["transcript", 2], {"kind": "fed", "feed": "a", "budget": 1}, ["speech", 2]]},
    {"prologue": [["reflection", 2], {"kind": "fed", "feed": "a"}], "cycle": [["transcript", 3]]},
]
