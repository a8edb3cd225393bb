"""Tools through the unmodified openai client, over loopback: a call, its result, and the spoken answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from realtime_client import connected, greeted, make_context, run
from small_servers import KEY, RunningServer, running_server
from tool_models import (
    ANSWER,
    CALLS_BADLY,
    CALLS_ONCE,
    CALLS_TWICE,
    MOMENT,
    NO_CALL,
    SPEAKS_THEN_CALLS,
    make_tool_model,
)

from innervoice import Engine

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "The weather now.", "parameters": PARAMETERS}
CHAT_TOOLS: Any = [{"type": "function", "function": FUNCTION}]
TOOLS: Any = [{"type": "function", **FUNCTION}]
QUESTION = "How warm is it in Paris?"
RESULT = '{"celsius": 25}'
PARIS = {"city": "Paris"}


@contextmanager
def serving(tiny: Path, folder: Path, steps: Any) -> Iterator[RunningServer]:
    """A server whose model takes these steps."""
    path = make_tool_model(tiny, folder, steps, greedy=True)
    with (
        Engine.from_pretrained(path, device="cpu", dtype="float32", max_sessions=4) as engine,
        running_server(engine, max_output_tokens=60) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def server(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tiny_dir, tmp_path_factory.mktemp("model"), CALLS_ONCE) as made:
        yield made


@pytest.fixture
def chat(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(client: OpenAI, messages: list[Any], **changes: Any) -> Any:
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "tools": CHAT_TOOLS}
    return client.chat.completions.create(messages=messages, **options | changes)


async def talk(base: str, work: Any, **session: Any) -> list[Any]:
    """Run a conversation -> all events of the server."""
    seen: list[Any] = []
    async with (
        AsyncOpenAI(base_url=f"{base}/v1", api_key=KEY) as client,
        client.realtime.connect(model="tiny") as connection,
    ):
        update = {"type": "realtime", "tools": TOOLS, "audio": {"input": {"turn_detection": None}}}
        await connection.session.update(session={**update, **session})  # type: ignore[typeddict-item]

        async def answer(**response: Any) -> Any:
            await connection.response.create(response=response)  # type: ignore[arg-type]
            async for event in connection:
                seen.append(event)
                if event.type == "response.done":
                    return event.response
            raise AssertionError("the connection ended")

        await asyncio.wait_for(work(connection, answer), 60)
    return seen


def item(**fields: Any) -> Any:
    return fields


def said(text: str) -> Any:
    return item(type="message", role="user", content=[{"type": "input_text", "text": text}])


def test_a_call_its_result_and_the_spoken_answer(server: RunningServer) -> None:
    responses: list[Any] = []

    async def work(connection: Any, answer: Any) -> None:
        await connection.conversation.item.create(item=said(QUESTION))
        called = await answer()
        responses.append(called)
        [call] = called.output
        result = item(type="function_call_output", call_id=call.call_id, output=RESULT)
        await connection.conversation.item.create(item=result)
        responses.append(await answer())
        await connection.conversation.item.create(item=said("Thank you."))
        responses.append(await answer())

    seen = asyncio.run(talk(server.base, work))
    assert [event for event in seen if event.type == "error"] == []
    called, answered, thanked = responses
    [call] = called.output
    assert (called.status, call.type, call.name, call.status) == (
        "completed",
        "function_call",
        "weather",
        "completed",
    )
    assert json.loads(call.arguments) == PARIS
    [message] = answered.output
    assert (message.content[0].transcript, answered.status) == (ANSWER, "completed")
    assert [one.type for one in thanked.output] == ["message"]

    of_call = [event for event in seen if getattr(event, "response_id", None) == called.id]
    assert [event.type for event in of_call] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    added, delta, done, over = of_call
    assert (added.item.status, added.item.arguments, added.item.id) == ("in_progress", "", call.id)
    assert delta.delta == done.arguments == over.item.arguments == call.arguments
    assert done.name == "weather" and delta.call_id == done.call_id == call.call_id
    types = [event.type for event in seen]
    place = types.index("response.function_call_arguments.done")
    assert any(event.type == "conversation.item.added" and event.item.id == call.id for event in seen[:place])
    sound = [event for event in seen if event.type == "response.output_audio.delta"]
    assert {event.response_id for event in sound} == {answered.id, thanked.id}
    assert (
        len(b"".join(base64.b64decode(one.delta) for one in sound if one.response_id == answered.id)) > 24000
    )
    chain = [event for event in seen if event.type == "conversation.item.added"]
    assert [one.previous_item_id for one in chain[1:]] == [one.item.id for one in chain[:-1]]
    kinds = ["message", "function_call", "function_call_output", "message", "message", "message"]
    assert [one.item.type for one in chain] == kinds


def test_choices_of_a_response_go_before_the_session(server: RunningServer) -> None:
    responses: list[Any] = []

    async def work(connection: Any, answer: Any) -> None:
        named = {"type": "function", "name": "weather"}
        for response in (
            {"tool_choice": "none"}, {"tools": []}, {"tool_choice": "required"}, {"tool_choice": named},
            {"output_modalities": ["text"]}, {"conversation": "none"},
        ):  # fmt: skip
            question = {"input": [said(QUESTION)]}
            responses.append(await answer(**question, **response))

    asyncio.run(talk(server.base, work))
    outputs = [
        [(one.type, getattr(one, "arguments", None)) for one in response.output] for response in responses
    ]
    message, forced = ("message", None), ("function_call", '{"city": "Oslo"}')
    paris = ("function_call", '{"city": "Paris"}')
    assert outputs == [[message], [message], [forced], [forced], [paris], [paris]]


def test_dialogues_that_were_held_elsewhere_and_bad_choices(server: RunningServer) -> None:
    async def work(connection: Any, answer: Any) -> None:
        call = item(type="function_call", call_id="call_1", name="weather", arguments=json.dumps(PARIS))
        result = item(type="function_call_output", call_id="call_1", output=RESULT)
        for one in (said(QUESTION), call, result):
            await connection.conversation.item.create(item=one)
        answered = await answer()
        assert [one.type for one in answered.output] == ["message"]
        assert answered.output[0].content[0].transcript == ANSWER
        await connection.response.create(response={"tool_choice": {"type": "function", "name": "time"}})
        async for event in connection:
            if event.type == "error":
                assert event.error.param == "response.tool_choice"
                return

    asyncio.run(talk(server.base, work))


def test_what_is_said_before_a_call_comes_before_it(tiny_dir: Path, tmp_path: Path) -> None:
    responses: list[Any] = []

    async def work(connection: Any, answer: Any) -> None:
        await connection.conversation.item.create(item=said(QUESTION))
        responses.append(await answer())
        call = responses[0].output[1]
        await connection.conversation.item.delete(item_id=responses[0].output[0].id)
        result = item(type="function_call_output", call_id=call.call_id, output=RESULT)
        await connection.conversation.item.create(item=result)
        responses.append(await answer())

    with serving(tiny_dir, tmp_path, SPEAKS_THEN_CALLS) as server:
        seen = asyncio.run(talk(server.base, work))
    assert [event for event in seen if event.type == "error"] == []
    message, call = responses[0].output
    assert (message.type, message.content[0].transcript, call.type) == ("message", MOMENT, "function_call")
    added = [event for event in seen if event.type == "response.output_item.added"]
    assert [event.output_index for event in added[:2]] == [0, 1]
    closed = [event.item.id for event in seen if event.type == "response.output_item.done"]
    assert closed[:2] == [message.id, call.id]
    assert responses[1].output[0].content[0].transcript == ANSWER


def test_a_call_that_cannot_be_read_fails_the_response(tiny_dir: Path, tmp_path: Path) -> None:
    responses: list[Any] = []

    async def work(connection: Any, answer: Any) -> None:
        await connection.conversation.item.create(item=said(QUESTION))
        responses.append(await answer())

    with serving(tiny_dir, tmp_path, CALLS_BADLY) as server:
        asyncio.run(talk(server.base, work))
        with OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as client:
            [choice] = ask(client, [{"role": "user", "content": QUESTION}]).choices
    [response] = responses
    assert (response.status, response.status_details.error.code) == ("failed", "invalid_tool_call")
    assert [one.type for one in response.output] == ["message"]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "stop",
        NO_CALL,
        None,
    )


@pytest.mark.parametrize("with_sound", [False, True])
def test_a_chat_goes_from_a_call_to_the_answer(chat: OpenAI, with_sound: bool) -> None:
    sound: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    options = sound if with_sound else {}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    [choice] = ask(chat, messages, **options).choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, choice.message.audio) == (None, None)
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        PARIS,
    )
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    [answer] = ask(chat, messages, **options).choices
    assert answer.finish_reason == "stop" and answer.message.tool_calls is None
    text = answer.message.audio.transcript if with_sound else answer.message.content
    assert text == ANSWER


def test_a_streamed_chat_has_the_calls_in_pieces(tiny_dir: Path, tmp_path: Path) -> None:
    with (
        serving(tiny_dir, tmp_path, CALLS_TWICE) as server,
        OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as client,
        client.chat.completions.stream(
            model="tiny", messages=[{"role": "user", "content": QUESTION}], tools=CHAT_TOOLS, temperature=0
        ) as stream,
    ):
        final = stream.get_final_completion()
        [one] = ask(client, [{"role": "user", "content": QUESTION}], parallel_tool_calls=False).choices
    [choice] = final.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    assert len({call.id for call in calls}) == 2
    assert len(one.message.tool_calls) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice"),
    ],
)
def test_bad_tools_of_a_chat_are_named(chat: OpenAI, changes: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(chat, [{"role": "user", "content": QUESTION}], **changes)
    assert refused.value.param == param


def test_a_model_without_tools_answers_a_chat_with_them(small_engine: Engine) -> None:
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "?"}}]},
        {"role": "tool", "tool_call_id": "a", "content": RESULT},
    ]  # fmt: skip
    with (
        running_server(small_engine) as server,
        OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as client,
    ):
        [choice] = ask(client, messages, max_completion_tokens=20, tool_choice="required").choices
        nameless = [{"type": "function"}]
        with pytest.raises(BadRequestError) as refused:
            ask(client, messages, tools=nameless)
    assert choice.finish_reason in ("stop", "length") and choice.message.tool_calls is None
    assert refused.value.param == "tools"


@pytest.mark.parametrize("dialect", ["ga", "beta"])
def test_every_event_of_a_call_is_of_the_protocol(server: RunningServer, dialect: str) -> None:
    """The client holds each event to the SDK's types, strictly. An item that comes meanwhile has its place behind the reply."""

    async def work() -> None:
        context = make_context(server.context.engine, max_output_tokens=60)
        async with connected(context, dialect) as client:
            await greeted(client, tools=TOOLS)
            client.say(QUESTION)
            called = await client.answer()
            [call] = called["output"]
            assert (call["type"], json.loads(call["arguments"])) == ("function_call", PARIS)
            result = {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}
            client.send("conversation.item.create", item=result)
            client.send("response.create")
            client.say("Thank you.", id="thanks")
            answered = (await client.until("response.done"))["response"]
            assert answered["output"][0]["content"][0]["transcript"] == ANSWER
            added = "conversation.item.created" if dialect == "beta" else "conversation.item.added"
            chain = client.of_type(added)
            assert [one["previous_item_id"] for one in chain[1:]] == [one["item"]["id"] for one in chain[:-1]]
            assert [one["item"]["id"] for one in chain[-2:]] == [answered["output"][0]["id"], "thanks"]
            assert client.of_type("error") == []
        context.listener.close()
        context.calls.shutdown()

    run(work())
