"""Tool calls through the engine: made, answered, forced and refused, on tiny checkpoints whose weights make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tool_models import (
    ANSWER,
    CALL,
    CALLS_BADLY,
    CALLS_ONCE,
    CALLS_TWICE,
    CLOSE,
    MOMENT,
    NO_CALL,
    OBSERVATION,
    OPEN,
    SPEAKS_THEN_CALLS,
    Step,
    make_tool_model,
)

from innervoice import (
    Engine,
    EventLog,
    Message,
    Reply,
    Sampling,
    Schedule,
    ScheduleError,
    Segment,
    Text,
    Tool,
    ToolCall,
    Transcript,
)
from innervoice.api.event_log import to_json
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TIME = {"type": "function", "name": "time", "description": "The time of day."}
GREEDY = Sampling(temperature=0, max_new_tokens=60)
QUESTION = Text("How warm is it in Paris?")
RESULT = Message("tool", Text('{"celsius": 25}'))
PARIS = ToolCall("weather", '{"city": "Paris"}', CALL)


@pytest.fixture(scope="module")
def load(
    tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[tuple[Step, ...]], Engine]]:
    """Engines by what their weights do, each loaded once."""
    made: dict[tuple[Step, ...], Engine] = {}

    def find(steps: tuple[Step, ...]) -> Engine:
        if steps not in made:
            folder = make_tool_model(tiny_dir, tmp_path_factory.mktemp("model"), steps)
            made[steps] = Engine.from_pretrained(folder, device="cpu", dtype="float32", vocoder_noise=False)
        return made[steps]

    yield find
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def engine(load: Callable[[tuple[Step, ...]], Engine]) -> Engine:
    return load(CALLS_ONCE)


def ids_of(engine: Engine, *names: str) -> list[int]:
    tokenizer = engine.parts.requests.tokenizer
    return [tokenizer.require_special(name) for name in names]


def kinds(reply: Reply) -> list[str]:
    found = [event.kind for event in reply.events]
    return [kind for i, kind in enumerate(found) if found[:i][-1:] != [kind]]


def test_a_call_its_result_and_the_answer(engine: Engine) -> None:
    with engine.open_session(tools=[WEATHER, TIME], sampling=GREEDY) as session:
        called = session.reply(QUESTION).reply()
        assert called.finish_reason == "tool_calls"
        assert called.tool_calls == [PARIS]
        assert (called.transcript, called.audio.duration_s, called.reflections) == ("", 0.0, [])
        assert kinds(called) == ["tool", "end", "done"]
        texts = [event.text for event in called.events if isinstance(event, Tool)]
        assert texts == ["", CALL, ""]
        assert (called.usage.tool_tokens, called.usage.reflection_tokens) == (3, 0)
        twin = session.fork()
        export = session.export()
        answers = [session.reply([RESULT]).reply(), twin.reply([RESULT]).reply()]
        twin.close()
        with engine.open_session(restore=export, tools=[WEATHER, TIME], sampling=GREEDY) as restored:
            answers.append(restored.reply([RESULT]).reply())
    for answer in answers:
        assert (answer.finish_reason, answer.transcript, answer.tool_calls) == ("stop", ANSWER, [])
        assert answer.audio.duration_s > 0.5
        assert answer.ids == answers[0].ids


def test_the_history_holds_the_call_as_it_was_made_and_the_result_behind_it(engine: Engine) -> None:
    opening, close, observation = ids_of(engine, OPEN, CLOSE, OBSERVATION)
    with engine.open_session(tools=[WEATHER], sampling=GREEDY) as session:
        called = session.reply(QUESTION).reply()
        stream = session.reply([RESULT])
        stream.reply()
        assert stream.history is not None
        assert stream.history.ids[-3:] == called.ids[:3] == [opening, called.ids[1], close]
        assert stream.record["prompt_ids"][0] == observation
        roles = [item.role for item in session.items()]
        assert roles == ["user", "assistant", "tool", "assistant"]
    given = Message("assistant", [ToolCall("weather", '{"city": "Paris"}')])
    stream = engine.stream([Message("user", QUESTION), given, RESULT], tools=[WEATHER], sampling=GREEDY)
    assert stream.reply().transcript == ANSWER
    prompt = stream.record["prompt_ids"]
    text = engine.parts.requests.tokenizer.encode(CALL)
    start = prompt.index(opening)
    assert prompt[start : start + len(text) + 3] == [opening, *text, close, observation]


def test_tools_are_told_in_the_system_text_and_only_where_there_are_some(engine: Engine) -> None:
    plain = engine.stream(QUESTION, sampling=GREEDY)
    told = engine.stream(QUESTION, sampling=GREEDY, tools=[WEATHER])
    plain.reply(), told.reply()
    tokenizer = engine.parts.requests.tokenizer

    def words(ids: list[int]) -> str:
        return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")

    assert json.dumps(WEATHER["function"]) in words(told.record["prompt_ids"])
    assert "weather" not in words(plain.record["prompt_ids"])
    assert plain.record["schedule"] == {"prologue": [], "cycle": [["transcript", 13], ["speech", 26]]}
    assert told.record["schedule"]["tool"] == "on"


@pytest.mark.parametrize("options", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_or_with_the_choice_of_none_nothing_is_called(
    engine: Engine, options: dict[str, Any]
) -> None:
    reply = engine.generate(QUESTION, sampling=GREEDY, **options)
    assert (reply.finish_reason, reply.transcript, reply.tool_calls) == ("stop", ANSWER, [])
    schedule = Schedule(prologue=(Segment("tool"),), cycle=Schedule.preset("interleaved").cycle, tool="on")
    if options:
        assert engine.generate(QUESTION, sampling=GREEDY, schedule=schedule, **options).ids == reply.ids


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEATHER], "required"),
        ([WEATHER, TIME], {"name": "weather"}),
        ([TIME, WEATHER], {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_a_required_call_is_forced_open_and_a_named_one_begins_with_its_name(
    engine: Engine, tools: list[Any], choice: Any
) -> None:
    reply = engine.generate(QUESTION, sampling=GREEDY, tools=tools, tool_choice=choice)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("weather", '{"city": "Oslo"}')]
    assert (reply.finish_reason, reply.transcript) == ("tool_calls", "")
    among_several = engine.generate(QUESTION, sampling=GREEDY, tools=[WEATHER, TIME], tool_choice="required")
    assert among_several.tool_calls == [PARIS]


def test_speech_before_a_call_is_heard_and_an_interruption_keeps_the_call(
    load: Callable[[tuple[Step, ...]], Engine],
) -> None:
    engine = load(SPEAKS_THEN_CALLS)
    with engine.open_session(tools=[WEATHER], sampling=GREEDY) as session:
        called = session.reply(QUESTION).reply()
        assert (called.finish_reason, called.transcript, called.tool_calls) == ("tool_calls", MOMENT, [PARIS])
        assert called.audio.duration_s > 0.3
        heard = session.interrupt(100)
        assert heard.speech_tokens < called.usage.speech_tokens
        stream = session.reply([RESULT])
        assert stream.reply().transcript == ANSWER
        assert stream.history is not None
        opening, close = ids_of(engine, OPEN, CLOSE)
        assert stream.history.ids[-3] == opening and stream.history.ids[-1] == close


@pytest.mark.parametrize("is_parallel", [True, False])
def test_several_calls_where_they_may_be(
    load: Callable[[tuple[Step, ...]], Engine], is_parallel: bool
) -> None:
    engine = load(CALLS_TWICE)
    reply = engine.generate(QUESTION, sampling=GREEDY, tools=[WEATHER], parallel_tool_calls=is_parallel)
    cities = [json.loads(call.arguments)["city"] for call in reply.tool_calls]
    assert cities == (["Paris", "Rome"] if is_parallel else ["Paris"])
    segments = [event.segment for event in reply.events if isinstance(event, Tool)]
    assert segments == ([0] * 3 + [1] * 3 if is_parallel else [0] * 3)
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_a_reply_that_is_cut_short_in_its_call_leaves_nothing_of_it(engine: Engine, num_tokens: int) -> None:
    with engine.open_session(tools=[WEATHER], sampling=GREEDY) as session:
        short = Sampling(temperature=0, max_new_tokens=num_tokens)
        cut = session.reply(QUESTION, sampling=short).reply()
        assert (cut.finish_reason, cut.tool_calls, len(cut.ids)) == ("length", [], num_tokens)
        stream = session.reply(QUESTION)
        assert stream.reply().tool_calls == [PARIS]
        assert stream.history is not None
        assert not set(ids_of(engine, OPEN)) & set(stream.history.ids)


def test_a_call_that_cannot_be_read_says_so(load: Callable[[tuple[Step, ...]], Engine]) -> None:
    reply = load(CALLS_BADLY).generate(QUESTION, sampling=GREEDY, tools=[WEATHER])
    [call] = reply.tool_calls
    assert (call.name, call.arguments, call.text) == ("", "", NO_CALL)
    assert call.error is not None and "JSON object" in call.error
    assert not any(isinstance(event, Transcript) for event in reply.events)


def test_a_log_of_a_call_is_replayed(engine: Engine, tmp_path: Path) -> None:
    stream = engine.stream(QUESTION, sampling=GREEDY, tools=[WEATHER])
    log, lines = EventLog(), [stream.record]
    for event in stream:
        lines += log.feed(event)
    [tool] = [line for line in lines if line["kind"] == "tool"]
    assert tool["text"] == CALL and len(tool["ids"]) == 3
    assert tool["call"] == {"name": "weather", "arguments": '{"city": "Paris"}', "text": CALL, "error": None}
    assert lines[-1]["reason"] == "tool_calls"
    path = tmp_path / "reply.jsonl"
    path.write_text("".join(to_json(line) + "\n" for line in lines))
    assert replay(engine, RecordedReply.load(path)).mismatch is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type is 'web_search'"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\] has no name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"a": {1, 2}}}]}, "is not a JSON value"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice is 'sometimes'"),
        ({"tools": [WEATHER], "tool_choice": {"name": "time"}}, "names 'time', and tools hold weather"),
        ({"tool_choice": "required"}, "'required' without tools"),
        ({"tools": [WEATHER], "schedule": Schedule(cycle=(), guided=False)}, "a free reply calls no tool"),
    ],
)
def test_bad_tools_are_named(engine: Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.stream(QUESTION, **options)


def test_a_checkpoint_without_tokens_of_a_call_refuses_tools(tiny_dir: Path) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu") as plain:
        with pytest.raises(ScheduleError, match="names no 'tool_open' token"):
            plain.generate(QUESTION, tools=[WEATHER])
        with pytest.raises(ValueError, match="names no tool tokens, so a message holds no ToolCall"):
            plain.generate([Message("user", QUESTION), Message("assistant", [PARIS]), RESULT])
        named = Schedule.preset("interleaved", tool="on", tokens={"tool_open": OPEN, "tool_close": CLOSE})
        assert plain.generate(QUESTION, tools=[WEATHER], schedule=named, sampling=GREEDY).ids


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_an_assistant_calls(role: Any) -> None:
    with pytest.raises(ValueError, match=f"a message of role {role} holds a ToolCall"):
        Message(role, [ToolCall("weather")])
