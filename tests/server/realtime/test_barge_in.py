"""Turns found by voice activity, replies that are broken into, and what the history keeps of them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, greeted, run

from innervoice.runtime.scheduler import StepPlan
from innervoice.server.context import ServerContext

RATE = 24000
LOUD = (np.sin(np.arange(RATE) * 2 * np.pi * 220 / RATE) * 12000).astype(np.int16)
QUIET = np.zeros(RATE, dtype=np.int16)
SERVER_VAD: dict[str, Any] = {"type": "server_vad", "silence_duration_ms": 300, "prefix_padding_ms": 200}


async def heard(client: RealtimeClient, pcm: np.ndarray, piece_ms: int = 20) -> None:
    """Append sound in pieces, and let the server listen in between."""
    size = RATE * piece_ms // 1000
    for start in range(0, len(pcm), size):
        client.append(pcm[start : start + size])
        await asyncio.sleep(0)


async def long_reply(client: RealtimeClient, **more: Any) -> dict[str, Any]:
    """Begin a reply that lasts, and wait for some of its sound -> the response."""
    client.say("hello")
    client.send("response.create", response={"max_output_tokens": 1500, **more})
    response = (await client.until("response.created"))["response"]
    await client.until("response.output_audio.delta")
    return response


def vad(**changes: Any) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": {**SERVER_VAD, **changes}}}}


def test_a_turn_is_found_and_answered(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **vad())
            await heard(client, np.concatenate([QUIET[: RATE // 2], LOUD, QUIET]))
            started = await client.until("input_audio_buffer.speech_started")
            done = await client.until("response.done")
            kinds = [
                one for one in client.types() if one.startswith(("input_audio", "conversation", "response.c"))
            ]
            begin = kinds.index("input_audio_buffer.speech_started")
            assert kinds[begin : begin + 6] == [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
                "response.created",
            ]
            stopped = client.of_type("input_audio_buffer.speech_stopped")[0]
            assert abs(started["audio_start_ms"] - 300) <= 70
            assert abs(stopped["audio_end_ms"] - 1800) <= 100
            ids = {one["item_id"] for one in client.of_type("input_audio_buffer.committed")} | {
                started["item_id"],
                stopped["item_id"],
            }
            assert len(ids) == 1
            assert done["response"]["usage"]["input_token_details"]["audio_tokens"] > 10

    run(work())


def test_speech_stops_the_reply_at_once_and_the_history_keeps_what_was_heard(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, max_output_tokens=1500, **vad())
            response = await long_reply(client)
            await heard(client, LOUD[: RATE // 2])
            await client.until("input_audio_buffer.speech_started")
            done = (await client.until("response.done"))["response"]
            place = client.types().index("input_audio_buffer.speech_started")
            late = [one["type"] for one in client.events[place:] if one["type"].endswith(".delta")]
            assert late == []
            assert done["id"] == response["id"]
            assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
            item = done["output"][0]
            assert item["status"] == "incomplete"

            client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=80)
            cut = await client.until("conversation.item.truncated")
            assert cut["audio_end_ms"] == 80
            client.send("conversation.item.retrieve", item_id=item["id"])
            kept = (await client.until("conversation.item.retrieved"))["item"]["content"][0]["transcript"]
            sent = item["content"][0]["transcript"]
            assert sent.startswith(kept)
            assert len(kept) < len(sent)
            await heard(client, QUIET)
            await client.until("response.done")
            assert client.of_type("error") == []

    run(work())


def test_without_interrupt_response_speech_waits_for_the_reply_to_end(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, max_output_tokens=60, **vad(interrupt_response=False))
            client.say("hello")
            client.send("response.create")
            await client.until("response.created")
            await heard(client, np.concatenate([LOUD[: RATE // 2], QUIET]))
            first, second = [(await client.until("response.done"))["response"] for _ in range(2)]
            assert (first["status"], second["status"]) == ("incomplete", "incomplete")
            assert client.of_type("error") == []

    run(work())


def test_a_turn_may_be_committed_without_an_answer(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **vad(create_response=False))
            await heard(client, np.concatenate([LOUD[: RATE // 2], QUIET, LOUD[: RATE // 2], QUIET]))
            for _ in range(2):
                await client.until("input_audio_buffer.committed")
            await client.settle()
            assert client.of_type("response.created") == []
            done = await client.answer()
            assert done["usage"]["input_token_details"]["audio_tokens"] > 2 * 6

    run(work())


def test_a_reply_that_is_cancelled_gives_way_to_the_next(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            await long_reply(client)
            client.send("response.create", event_id="second")
            error = (await client.until("error"))["error"]
            assert (error["code"], error["event_id"]) == (
                "conversation_already_has_active_response",
                "second",
            )
            client.send("response.cancel")
            client.send("response.create", response={"max_output_tokens": 8})
            client.send("response.cancel", response_id="resp_of_nobody")
            done = (await client.until("response.done"))["response"]
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            assert done["usage"]["output_tokens"] > 0
            last = (await client.until("response.done"))["response"]
            assert last["status"] == "incomplete"
            order = [one["type"] for one in client.of_type("response.created", "response.done")]
            assert order == ["response.created", "response.done"] * 2

    run(work())


@pytest.mark.parametrize(
    ("when", "played_ms"),
    [
        ("running", 0),
        ("running", 10**7),
        ("done", 100),
        ("done", 10**7),
        ("after the next turn", 100),
        ("after the next reply", 0),
        ("after the next reply", 100),
    ],
)
def test_a_truncation_is_acknowledged_whenever_it_comes(
    context: ServerContext, when: str, played_ms: int
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello")
            client.send("response.create", response={"max_output_tokens": 120})
            item_id = (await client.until("response.output_item.added"))["item"]["id"]
            await client.until("response.output_audio.delta")
            if when != "running":
                await client.until("response.done")
            if when.startswith("after"):
                client.say("and then?")
            if when == "after the next reply":
                await client.answer()
            client.send(
                "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=played_ms
            )
            cut = await client.until("conversation.item.truncated")
            sent_ms = 1e3 * len(client.audio(client.of_type("response.created")[0]["response"]["id"])) / RATE
            assert abs(cut["audio_end_ms"] - min(played_ms, sent_ms)) <= 1
            client.send("conversation.item.retrieve", item_id=item_id)
            item = (await client.until("conversation.item.retrieved"))["item"]
            if played_ms == 0:
                assert item["content"][0]["transcript"] == ""
            assert (await client.answer())["output"]
            [connection] = context.live
            session = connection._hosted.conversation.scope.session  # type: ignore[attr-defined]
            kept = {one.item_id: one for one in await session.aitems()}
            if played_ms == 0:
                assert item_id not in kept or kept[item_id].num_speech_tokens == 0
            assert client.of_type("error") == []

    run(work())


@pytest.mark.parametrize(
    "context_of_its_own", [{}, {"input": [{"role": "user", "content": "hello"}]}], ids=["session", "input"]
)
def test_what_was_not_reported_is_cut_by_the_servers_estimate(
    context: ServerContext, context_of_its_own: dict[str, Any]
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            response = await long_reply(client, **context_of_its_own)
            item_id = (client.of_type("response.output_item.added"))[0]["item"]["id"]
            client.send("response.cancel", response_id=response["id"])
            sent = (await client.until("response.done"))["response"]["output"][0]["content"][0]["transcript"]
            client.say("stop")
            await client.answer(max_output_tokens=8)
            client.send("conversation.item.retrieve", item_id=item_id)
            kept = (await client.until("conversation.item.retrieved"))["item"]["content"][0]["transcript"]
            assert sent.startswith(kept)
            assert len(kept) < len(sent)
            client.send("conversation.item.delete", item_id=item_id)
            client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=5)
            error = (await client.until("error"))["error"]
            assert error["code"] == "item_truncate_invalid_item_id"
            assert (await client.answer(max_output_tokens=8))["output"]

    run(work())


def test_clear_forgets_an_open_turn(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **vad())
            await heard(client, LOUD[: RATE // 2])
            started = await client.until("input_audio_buffer.speech_started")
            client.send("input_audio_buffer.clear")
            await client.until("input_audio_buffer.cleared")
            await heard(client, QUIET)
            await client.settle()
            assert client.of_type("input_audio_buffer.committed") == []
            await heard(client, np.concatenate([LOUD[: RATE // 2], QUIET]))
            again = await client.until("input_audio_buffer.speech_started")
            assert again["item_id"] != started["item_id"]
            assert again["audio_start_ms"] >= 1280
            await client.until("response.done")

    run(work())


def test_silence_after_a_reply_makes_the_assistant_speak_again(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **vad(idle_timeout_ms=1000))
            await heard(client, QUIET)
            client.say("hello")
            await client.answer(max_output_tokens=8)
            triggered = await client.until("input_audio_buffer.timeout_triggered")
            assert (await client.until("input_audio_buffer.committed"))["item_id"] == triggered["item_id"]
            await client.until("response.done")

    run(work())


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_goes_both_ways(context: ServerContext, law: str) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            audio = {"input": {"format": {"type": law}}, "output": {"format": {"type": law}}}
            client.send("session.update", session={"audio": audio})
            await client.until("session.updated")
            client.send("input_audio_buffer.append", audio="1aqA" * 1000)
            client.send("input_audio_buffer.commit")
            await client.until("input_audio_buffer.committed")
            done = await client.answer(max_output_tokens=120)
            seconds = 2 * len(client.audio(done["id"])) / 8000
            assert seconds > 0.3
            client.send("session.update", session={"input_audio_format": "pcm16"})
            await client.until("session.updated")

    run(work())


def test_a_reply_cancelled_before_it_begins_leaves_the_one_before_and_what_was_asked(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        core = context.engine.parts.core
        async with connected(context) as client:
            await greeted(client)
            client.say("hello", id="first")
            first = (await client.answer(max_output_tokens=60))["output"][0]
            client.say("and then?", id="second")
            with monkeypatch.context() as patch:
                patch.setattr(core, "_plan", lambda now: StepPlan())
                client.send("response.create")
                created = (await client.until("response.created"))["response"]
                unbegun = (await client.until("response.output_item.added"))["item"]["id"]
                await client.settle(0.05)
                client.send("response.cancel")
                done = (await client.until("response.done", id=created["id"]))["response"]
                assert done["status"] == "cancelled"
                client.send("conversation.item.truncate", item_id=unbegun, content_index=0, audio_end_ms=0)
                await client.until("conversation.item.truncated")
            await client.answer(max_output_tokens=8)
            [connection] = context.live
            session = connection._hosted.conversation.scope.session  # type: ignore[attr-defined]
            kept = {one.item_id: one for one in await session.aitems()}
            assert list(kept)[:3] == ["first", first["id"], "second"]
            assert kept[first["id"]].num_speech_tokens > 0
            assert kept[first["id"]].text == first["content"][0]["transcript"]
            assert client.of_type("error") == []

    run(work())


def test_speech_is_read_ahead_under_changed_instructions(
    context: ServerContext, question: np.ndarray
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, instructions="Be brief.")
            client.say("hello")
            await client.answer(max_output_tokens=8)
            client.send("session.update", session={"instructions": "Be long and kind."})
            await client.until("session.updated")
            [connection] = context.live
            id = connection._hosted.conversation.scope.session.session_id  # type: ignore[attr-defined]
            client.append(np.resize(question, 5 * RATE))
            for _ in range(500):
                await asyncio.sleep(0.02)
                registry = context.engine.parts.core.registry
                if registry.known(id).num_prefetched > 40:
                    break
            client.send("input_audio_buffer.commit")
            usage = (await client.answer(max_output_tokens=8))["usage"]
            assert usage["input_token_details"]["cached_tokens"] > 40

    run(work())
