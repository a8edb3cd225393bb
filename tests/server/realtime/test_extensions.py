"""The engine's own events beside the protocol's: silent unless asked for; and sessions that are taken over."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from realtime_client import RealtimeClient, connected, greeted, run

from innervoice.schedule import UNLIMITED
from innervoice.server.context import ServerContext
from innervoice.server.realtime.extensions import ReplyExtensions
from innervoice.types import Reflection, ReflectionBudget, Transcript, Usage


def extensions(client: RealtimeClient) -> list[dict[str, Any]]:
    return [event for event in client.events if event["type"].startswith("innervoice.")]


def test_a_client_that_asks_for_nothing_sees_nothing_of_it(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            session = await greeted(client, innervoice={"schedule": "think_first"})
            client.say("hello")
            await client.answer()
            assert extensions(client) == []
            assert all("event_seq" not in event for event in client.events)
            assert session["innervoice"]["schedule"] == "think_first"
            assert "resume_token" not in session["innervoice"]

    run(work())


def test_reflection_segments_figures_and_what_was_heard(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            await greeted(client, innervoice={"schedule": "stitch_s"})
            client.send("innervoice.inject", text="stay calm")
            client.say("hello")
            done = await client.answer(max_output_tokens=120)
            kinds = [event["type"] for event in extensions(client)]
            assert kinds[-1] == "innervoice.response.stats"
            reflections = [one for one in extensions(client) if one["type"] == "innervoice.reflection.done"]
            assert reflections[0]["injected"] is True
            assert reflections[0]["text"].strip() == "stay calm"
            hidden = "".join(
                one["delta"] for one in extensions(client) if one["type"] == "innervoice.reflection.delta"
            )
            assert hidden == "".join(one["text"] for one in reflections)
            segments = [one for one in extensions(client) if one["type"] == "innervoice.segment"]
            assert [one["segment"] for one in segments] == list(range(len(segments)))
            assert sum(one["num_tokens"] for one in segments) == done["usage"]["output_tokens"]
            hidden_segments = [one for one in segments if one["kind"] == "reflection"]
            assert [one["spent"] for one in hidden_segments] == [one["spent"] for one in reflections]
            assert reflections[0]["cap"] is None  # injected text has no budget
            check_budgets(extensions(client))
            assert all(0 <= one["num_tokens"] - one["spent"] <= 2 for one in hidden_segments[1:])
            assert hidden_segments[0]["spent"] == 0
            spoken = [one for one in segments if one["kind"] == "speech"]
            borders = [(one["audio_start_ms"], one["audio_end_ms"]) for one in spoken]
            assert borders[0][0] == 0
            assert all(a[1] == b[0] for a, b in pairwise(borders))
            numbers = [event["event_seq"] for event in client.events]
            assert numbers == list(range(1, len(numbers) + 1))

            client.send("innervoice.playback.ack", response_id=done["id"], played_ms=40)
            client.send("innervoice.playback.ack", response_id="nothing", played_ms=40)
            client.send("innervoice.playback.ack", response_id=done["id"], played_ms=10**9)
            item_id = done["output"][0]["id"]
            client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
            heard = await client.until("innervoice.heard")
            assert heard["item_id"] == item_id
            assert heard["speech_tokens"] in (1, 2)
            assert client.of_type("error") == []

    run(work())


def check_budgets(events: list[dict[str, Any]]) -> None:
    """Each reflection opens with its cap before its text, and never spends more; the figures have the same caps."""
    started: dict[int, dict[str, Any]] = {}
    caps: list[int | None] = []
    for event in events:
        kind = event["type"].removeprefix("innervoice.")
        if kind == "reflection.started":
            assert event["spent"] <= 1
            started[event["segment"]] = event
        elif kind == "reflection.skipped":
            caps += [0] * event["num_skipped"]
        elif kind == "reflection.delta" and "cap" in event:
            assert (
                event["cap"] is None
                or 1 <= event["spent"] <= event["cap"] <= started[event["segment"]]["cap"]
            )
            assert event["reserve_ms"] >= 0
        elif kind == "reflection.done" and event["segment"] in started:
            assert event["cap"] is None or event["spent"] <= event["cap"]
            assert event["reserve_ms"] == started[event["segment"]]["reserve_ms"]
            caps.append(event["cap"])
        elif kind == "response.stats":
            figures = event["reflection_caps"]
    assert len(caps) == len(figures)
    assert all(figure is None or figure == cap for cap, figure in zip(caps, figures, strict=True))


def thought(n: int, budget: ReflectionBudget | None, **fields: Any) -> Reflection:
    return Reflection(reply_id="r", index=n, t=0.1 * n, segment=1, ids=[n], budget=budget, **fields)


def made_extensions(sent: list[dict[str, Any]]) -> ReplyExtensions:
    kinds = frozenset({"reflection", "timeline"})
    return ReplyExtensions("resp", "item", kinds, lambda event, is_delta: sent.append(event), 12.5)


def test_a_hidden_choice_opens_has_its_name_and_says_what_was_chosen() -> None:
    sent: list[dict[str, Any]] = []
    made = made_extensions(sent)
    made.take(thought(1, None, text="sad", name="emotion"))
    made.take(thought(2, None, text="ness", name="emotion", forced=True, choice="sadness"))
    made.take(Transcript(reply_id="r", index=3, t=0.5, segment=2, ids=[9], text="a"))
    assert [one["type"].removeprefix("innervoice.") for one in sent] == [
        "reflection.started", *["reflection.delta"] * 2, "reflection.done", "segment",
    ]  # fmt: skip
    assert {one["name"] for one in sent} == {"emotion"} and sent[0]["cap"] is None
    assert [one.get("choice") for one in sent] == [None, None, *["sadness"] * 3]


def test_budgets_are_sent_as_they_are_set_and_lowered() -> None:
    sent: list[dict[str, Any]] = []
    made = made_extensions(sent)
    made.take(thought(1, ReflectionBudget(40, 0, 1.5)))
    assert [one["type"] for one in sent] == ["innervoice.reflection.started"]
    assert sent[0] | {"cap": 40, "spent": 0, "reserve_ms": 1500, "t_ms": 100.0} == sent[0]
    made.take(thought(2, ReflectionBudget(40, 1, 1.4), text="so"))
    made.take(thought(3, ReflectionBudget(30, 2, 0.9), text=" far"))
    assert [(one["delta"], one["cap"], one["spent"], one["reserve_ms"]) for one in sent[1:]] == [
        ("so", 40, 1, 1400),
        (" far", 30, 2, 900),
    ]
    made.take(thought(4, ReflectionBudget(1, 2, 0.2)))  # fell below what was spent, which ended it
    made.take(Transcript(reply_id="r", index=5, t=0.5, segment=2, ids=[9], text="a"))
    done, segment = sent[3:]
    for event in (done, segment):
        assert (event["cap"], event["spent"], event["reserve_ms"]) == (2, 2, 1500)
    skipped = ReflectionBudget(0, 0, 0.3, num_skipped=2)
    made.take(Transcript(reply_id="r", index=6, t=0.6, segment=3, ids=[9], budget=skipped))
    assert sent[-1]["type"] == "innervoice.reflection.skipped"
    assert (sent[-1]["num_skipped"], sent[-1]["reserve_ms"], sent[-1]["t_ms"]) == (2, 300, 600.0)


def test_figures_have_the_budgets_of_reflections() -> None:
    sent: list[dict[str, Any]] = []
    made = ReplyExtensions(
        "resp", "item", frozenset({"timeline"}), lambda event, is_delta: sent.append(event), 12.5
    )
    made.end(Usage(reflection_caps=(24, 0, UNLIMITED), reflection_tokens=20))
    [stats] = sent
    assert stats["type"] == "innervoice.response.stats"
    assert stats["reflection_caps"] == [24, 0, None]
    assert stats["reflection_tokens"] == 20


def test_a_reflection_opens_with_its_budget(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            await greeted(client, innervoice={"schedule": "stitch_r"})
            client.say("hello")
            await client.answer()
            first = extensions(client)[0]
            assert first["type"] == "innervoice.reflection.started"
            assert (first["segment"], first["cap"], first["spent"], first["reserve_ms"]) == (0, 100, 0, 0)
            check_budgets(extensions(client))

            # A session's own limit: it counts where the schedule has none, and never raises one.
            for schedule, asked, cap in (("think_first", 12, 12), ("stitch_r", 300, 100)):
                client.send(
                    "session.update",
                    session={"innervoice": {"schedule": schedule, "reflection_budget": asked}},
                )
                shown = (await client.until("session.updated"))["session"]["innervoice"]
                assert shown["reflection_budget"] == asked
                num = len(extensions(client))
                client.say("and now?")
                done = await client.answer()
                [opened, *_] = [one for one in extensions(client)[num:] if one["type"].endswith(".started")]
                assert opened["cap"] == cap
                assert done["usage"]["output_tokens"] > 12

    run(work())


def test_a_session_that_lost_its_connection_is_taken_over(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            session = (await client.until("session.created"))["session"]
            await greeted_again(client)
            client.say("hello", id="mine")
            client.send("response.create", response={"max_output_tokens": 120})
            await client.until("response.created")
            client.drop()
            await client.settle(0.2)
            last = client.events[-1]["event_seq"]
            token = session["innervoice"]["resume_token"]
        async with connected(context, resume=token, last_event=str(last)) as again:
            greeting = (await again.until("session.created"))["session"]
            assert greeting["id"] == session["id"]
            assert greeting["innervoice"]["resumed"] is True
            assert greeting["innervoice"]["missed_events"] == 0
            await again.until("response.done")
            numbers = [event["event_seq"] for event in again.events[1:]]
            assert numbers == list(range(last + 1, last + 1 + len(numbers)))
            again.send("conversation.item.retrieve", item_id="mine")
            await again.until("conversation.item.retrieved")
            async with connected(context, resume=token) as third:
                await third.until("session.created")
                assert (await again.until("error"))["error"]["code"] == "session_taken_over"
                assert (await again.until("closed"))["code"] == 4001
                third.say("and then?")
                assert (await third.answer())["output"]
                assert third.of_type("error") == []
                assert context.admission.num_held == 1

    run(work())


async def greeted_again(client: RealtimeClient) -> None:
    client.send("session.update", session={"turn_detection": None, "temperature": 0.0})
    await client.until("session.updated")


def test_twins_and_exports_go_on_from_the_same_history(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            await greeted(client)
            client.say("hello", id="mine")
            await client.answer()
            client.send("innervoice.session.fork")
            twin = (await client.until("innervoice.session.forked"))["resume_token"]
            client.send("innervoice.session.export")
            export = (await client.until("innervoice.session.exported"))["resume_token"]
            client.say("why?")
            expected = (await client.answer())["output"][0]["content"]
            for token in (twin, export, export):
                async with connected(context, resume=token) as other:
                    await other.until("session.created")
                    other.send("conversation.item.retrieve", item_id="mine")
                    await other.until("conversation.item.retrieved")
                    other.say("why?")
                    assert (await other.answer())["output"][0]["content"] == expected
        await context.resumable.close()

    run(work())


@pytest.mark.parametrize("query", [{"resume": "resume_x"}, {"resume": "resume_x", "last_event": "-1"}])
def test_an_unknown_token_is_refused(context: ServerContext, query: dict[str, str]) -> None:
    async def work() -> None:
        async with connected(context, **query) as client:
            assert (await client.until("error"))["error"]["code"] == "invalid_resume_token"
            assert (await client.until("closed"))["code"] == 1008

    run(work())
