"""Conversations over a socket with the tiny checkpoint: what a client sends, what it gets, in which order."""

from __future__ import annotations

import asyncio
import threading
import traceback
from typing import Any

import numpy as np
import pytest
from realtime_client import connected, greeted, run

from innervoice import Engine, Reply, Sampling, Text
from innervoice.runtime.worker import Worker
from innervoice.server.context import ServerContext

REPLY = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
DELTAS = {"response.output_audio.delta", "response.output_audio_transcript.delta"}


def test_a_typed_question_is_answered_in_order_with_the_engines_own_ids_and_samples(
    engine: Engine, context: ServerContext
) -> None:
    alone = engine.generate(
        Text("hello"),
        sampling=Sampling(temperature=0.0, max_new_tokens=60),
        output_rate=24000,
        output_format="int16",
    )

    async def work() -> None:
        async with connected(context, model="gpt-realtime") as client:
            session = await greeted(client)
            assert session["model"] == "gpt-realtime"
            client.say("hello", id="mine")
            done = await client.answer(metadata={"topic": "greeting"})
            assert [one for one in client.types() if one not in DELTAS][-12:] == [
                "conversation.item.added",
                "conversation.item.done",
                *REPLY,
            ]
            assert done["status"] == "incomplete" if alone.finish_reason == "length" else "completed"
            assert done["metadata"] == {"topic": "greeting"}
            transcript = done["output"][0]["content"][0]["transcript"]
            assert transcript == alone.transcript
            deltas = client.of_type("response.output_audio_transcript.delta")
            assert "".join(one["delta"] for one in deltas) == transcript
            np.testing.assert_array_equal(client.audio(), alone.audio.samples)
            assert done["usage"]["output_tokens"] == len(alone.ids)
            added = client.of_type("conversation.item.added")
            assert [one["previous_item_id"] for one in added] == [None, "mine"]

    run(work())


def test_a_spoken_question_is_heard_whole_and_a_second_turn_goes_on(
    engine: Engine, context: ServerContext, question: np.ndarray
) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=60)
    with engine.open_session(sampling=sampling, output_format="int16", output_rate=24000) as session:
        session.push_audio(question, 24000)
        session.commit_audio()
        spoken = session.reply().reply()
        typed = session.reply(Text("why?")).reply()

    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            for start in range(0, len(question), 4800):
                client.append(question[start : start + 4800])
            client.send("input_audio_buffer.commit")
            committed = await client.until("input_audio_buffer.committed")
            first = await client.answer()
            np.testing.assert_array_equal(client.audio(first["id"]), spoken.audio.samples)
            client.say("why?")
            second = await client.answer()
            np.testing.assert_array_equal(client.audio(second["id"]), typed.audio.samples)
            client.send("conversation.item.retrieve", item_id=committed["item_id"])
            item = (await client.until("conversation.item.retrieved"))["item"]
            assert len(item["content"][0]["audio"]) == -(-len(question) * 2 // 3) * 4
            assert second["usage"]["input_token_details"]["cached_tokens"] > first["usage"]["input_tokens"]

    run(work())


def test_text_alone_and_the_overrides_of_one_response(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, instructions="Be brief.", max_output_tokens=30)
            client.say("hello")
            done = await client.answer(output_modalities=["text"], max_output_tokens=7, instructions="Shout.")
            assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
            assert done["usage"]["output_tokens"] == 7
            assert done["output"][0]["content"][0]["type"] == "output_text"
            assert "response.output_text.delta" in client.types()
            assert len(client.audio()) == 0
            again = await client.answer()
            assert again["output_modalities"] == ["audio"]
            assert again["usage"]["output_tokens"] == 30

    run(work())


def test_refused_events_change_nothing_and_name_the_event(context: ServerContext) -> None:
    refused = [
        ("response.cancel", {}, "response_cancel_not_active"),
        ("response.cancel", {"response_id": "resp_x"}, "response_cancel_not_active"),
        ("input_audio_buffer.commit", {}, "input_audio_buffer_commit_empty"),
        ("input_audio_buffer.append", {"audio": "AAA="}, None),
        ("input_audio_buffer.append", {"audio": "AA=="}, "invalid_value"),
        ("conversation.item.delete", {"item_id": "nobody"}, "item_delete_invalid_item_id"),
        ("conversation.item.retrieve", {"item_id": "nobody"}, "item_retrieve_invalid_item_id"),
        (
            "conversation.item.truncate",
            {"item_id": "nobody", "content_index": 0, "audio_end_ms": 1},
            "item_truncate_invalid_item_id",
        ),
        ("session.update", {"session": {"max_output_tokens": -1}}, "invalid_value"),
        ("response.create", {"response": {"metadata": {"a": 1}}}, "invalid_value"),
        (
            "response.create",
            {"response": {"input": [{"type": "item_reference", "id": "x"}]}},
            "invalid_value",
        ),
        ("innervoice.session.destroy", {}, "unknown_event"),
    ]

    async def work() -> None:
        async with connected(context) as client:
            session = await greeted(client)
            for i, (type, fields, code) in enumerate(refused):
                client.send(type, event_id=f"mine_{i}", **fields)
                if code is not None:
                    error = (await client.until("error"))["error"]
                    assert (error["code"], error["event_id"]) == (code, f"mine_{i}"), type
                    assert error["code"] != "response_cancel_not_active" or error["message"].startswith(
                        "Cancellation failed"
                    )
            client.send("session.update", session={})
            assert (await client.until("session.updated"))["session"] == session
            client.say("hello")
            assert (await client.answer())["output"]

    run(work())


@pytest.mark.parametrize("is_running", [True, False])
def test_changes_of_an_answer_are_checked_and_confirmed_in_order(
    context: ServerContext, is_running: bool
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello")
            client.send("response.create")
            id = (await client.until("response.output_item.added"))["item"]["id"]
            await client.until("response.output_audio.delta" if is_running else "response.done")
            cut = {"item_id": id, "audio_end_ms": 1}
            client.send("conversation.item.truncate", **cut, content_index=7, event_id="no part")
            client.send("conversation.item.truncate", **cut, content_index=-1, event_id="no part")
            client.send("conversation.item.truncate", **cut, content_index=0)
            client.send("conversation.item.delete", item_id=id)
            client.send("conversation.item.delete", item_id=id, event_id="gone")
            client.send("conversation.item.truncate", **cut, content_index=0, event_id="cut late")
            await client.until("error", event_id="cut late")
            kinds = [
                one["error"]["event_id"]
                if one["type"] == "error"
                else one["type"].removeprefix("conversation.item.")
                for one in client.events
                if one["type"] == "error" or id in (one.get("item_id"), one.get("item", {}).get("id"))
                if one["type"] == "error" or one["type"].startswith("conversation.item.")
            ]
            assert kinds.pop(0) == "added"
            assert kinds.index("done") < kinds.index("deleted")
            kinds.remove("done")
            assert kinds == ["no part", "no part", "truncated", "deleted", "gone", "cut late"]
            assert client.types().count("response.done") == 1

    run(work())


def test_items_keep_their_ids_and_their_order(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("one", id="a")
            client.say("three", id="c", role="assistant")
            client.say("two", id="b", previous="a")
            client.say("Be kind.", id="s", role="system", previous="root")
            client.say("again", id="a")
            client.say("lost", id="d", previous="nobody")
            assert (await client.until("error"))["error"]["code"] == "item_create_duplicate_item_id"
            assert (await client.until("error"))["error"]["code"] == "item_create_invalid_previous_item_id"
            added = client.of_type("conversation.item.added")
            assert [(one["item"]["id"], one["previous_item_id"]) for one in added] == [
                ("a", None),
                ("c", "a"),
                ("b", "a"),
                ("s", None),
            ]
            await client.answer()
            client.send("conversation.item.delete", item_id="b")
            client.say("and then?", id="e", previous="c")
            done = await client.answer()
            assert done["output"]
            [connection] = context.live
            conversation = connection._hosted.conversation  # type: ignore[attr-defined]
            engine_items = [item.item_id for item in await conversation.scope.session.aitems()]
            assert engine_items == [item.id for item in conversation.scope.items]
            assert engine_items[:4] == ["s", "a", "c", "e"]

    run(work())


def test_an_id_that_is_used_again_at_once_was_deleted_before(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("one", id="a", role="assistant")
            await client.until("conversation.item.done")
            gate = asyncio.Event()

            async def wait() -> None:
                await gate.wait()

            [connection] = context.live
            connection._hosted.conversation.scope.lane.put(wait)  # type: ignore[attr-defined]
            client.send("conversation.item.truncate", item_id="a", content_index=0, audio_end_ms=0)
            client.send("conversation.item.delete", item_id="a")
            client.say("two", id="a")
            client.send("conversation.item.delete", item_id="a")
            client.say("three", id="a")
            await client.settle(0.05)
            gate.set()
            client.send("conversation.item.retrieve", item_id="a")
            last = await client.until("conversation.item.retrieved")
            assert last["item"]["content"][0]["text"] == "three"
            told = [kind for kind in client.types() if kind.endswith(("item.added", "item.deleted"))]
            added, deleted = "conversation.item.added", "conversation.item.deleted"
            assert told == [added, deleted, added, deleted, added]

    run(work())


def test_a_greeting_needs_no_user(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            done = await client.answer(instructions="Greet the user.")
            assert done["output"][0]["content"][0]["transcript"]
            client.say("hello")
            assert (await client.answer())["output"][0]["content"][0]["transcript"]

    run(work())


def test_a_long_history_is_taken_in_at_once(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("Be kind.", role="system", id="0", previous="root")
            for i in range(1, 40):
                client.say(f"turn {i}", role="assistant" if i % 2 else "user", id=str(i), previous=str(i - 1))
            call = {"type": "function_call", "name": "clock", "call_id": "call_9", "arguments": "{}"}
            client.send("conversation.item.create", item=call)
            client.send(
                "conversation.item.create",
                item={"type": "function_call_output", "call_id": "call_9", "output": "noon"},
            )
            done = await client.answer()
            assert len(client.of_type("conversation.item.added")) == 43
            assert done["usage"]["input_tokens"] > 40 * 3
            assert done["status"] in ("completed", "incomplete")
            assert client.of_type("error") == []

    run(work())


def test_responses_beside_the_conversation_leave_no_trace_in_it(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello", id="a")
            count = len(client.of_type("conversation.item.added"))
            given = [
                {"type": "item_reference", "id": "a"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Sum up."}]},
            ]
            await client.until("conversation.item.done")
            for i, extra in enumerate(({}, {"input": given})):
                client.send(
                    "response.create", response={"conversation": "none", "metadata": {"n": str(i)}, **extra}
                )
            client.send("response.create")
            for _ in range(3):
                await client.until("response.done")
            created = [one["response"] for one in client.of_type("response.created")]
            assert [(one["conversation_id"] is None, one["metadata"]) for one in created] == [
                (True, {"n": "0"}),
                (True, {"n": "1"}),
                (False, None),
            ]
            assert len(client.of_type("conversation.item.added")) == count + 2
            inside = await client.answer(input=given)
            client.say("go on")
            assert (await client.answer())["output"]
            client.send("conversation.item.retrieve", item_id=inside["output"][0]["id"])
            assert (await client.until("conversation.item.retrieved"))["item"]["status"] != "in_progress"

    run(work())


def test_the_event_loop_never_waits_for_the_engine(
    context: ServerContext, question: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    call = Worker.call

    def watched(worker: Worker, ask: Any) -> Any:
        if threading.current_thread() is loop_thread:
            waited.append("".join(traceback.format_stack(limit=8)))
        return call(worker, ask)

    loop_thread = threading.current_thread()
    monkeypatch.setattr(Worker, "call", watched)

    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            await greeted(client)
            client.say("word " * 850, id="long")
            client.append(question)
            client.send("input_audio_buffer.commit")
            done = await client.answer()
            client.send("innervoice.playback.ack", response_id=done["id"], played_ms=1)
            item_id = done["output"][0]["id"]
            client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=80)
            client.send("conversation.item.delete", item_id="long")
            client.send("innervoice.session.fork")
            client.send("innervoice.session.export")
            client.say("hello")
            await client.answer(conversation="none")
            await client.answer(input=[{"type": "item_reference", "id": item_id}])
            await client.answer()
        await context.resumable.close()

    run(work())
    assert waited == []


def test_conversations_do_not_touch_each_other(engine: Engine, context: ServerContext) -> None:
    words = ["hello", "how are you?", "why is that so?"]
    sampling = Sampling(temperature=0.0, max_new_tokens=60)
    alone = [
        engine.generate(Text(one), sampling=sampling, output_rate=24000, output_format="int16")
        for one in words
    ]

    async def talk(said: str, expected: Reply) -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say(said)
            done = await client.answer()
            assert done["output"][0]["content"][0]["transcript"] == expected.transcript
            np.testing.assert_array_equal(client.audio(), expected.audio.samples)

    async def work() -> None:
        await asyncio.gather(*(talk(*pair) for pair in zip(words, alone, strict=True)))

    run(work())


def test_instructions_that_are_taken_back_are_the_models_own_again(context: ServerContext) -> None:
    async def work() -> None:
        heads: list[str | None] = []
        async with connected(context) as client:
            await greeted(client)
            [connection] = context.live
            session = connection._hosted.conversation.scope.session  # type: ignore[attr-defined]
            for instructions in ("Be brief.", "", "Be long.", "   "):
                client.send("session.update", session={"instructions": instructions})
                client.say("hello")
                assert (await client.answer(max_output_tokens=5))["output"]
                heads.append(session._worker.call_sessions(lambda one: one.history(session.session_id)).head)
        own = context.engine.parts.requests.default_system([])
        assert heads == ["Be brief.", own, "Be long.", own]
        assert own is not None

    run(work())
