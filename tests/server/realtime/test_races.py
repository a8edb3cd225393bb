"""Random client events, valid, invalid and racing: the order of the protocol holds whatever comes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, run

from innervoice.server.context import ServerContext

RATE = 24000
LOUD = (np.sin(np.arange(RATE // 5) * 2 * np.pi * 220 / RATE) * 12000).astype(np.int16)
QUIET = np.zeros(RATE // 2, dtype=np.int16)
BAD = ["{", '"x"', '{"type":"no"}', '{"type":"session.update"}', '{"type":"response.create","response":[]}']


class Chaos:
    """Sends random events of one client."""

    def __init__(self, client: RealtimeClient, seed: int) -> None:
        self.client = client
        self.draw = random.Random(seed)
        self.names = [f"item{i}" for i in range(8)]
        self.steps = [
            self.say,
            self.say,
            self.hear,
            self.hear,
            self.commit,
            self.answer,
            self.answer,
            self.cancel,
            self.truncate,
            self.delete,
            self.retrieve,
            self.update,
            self.clear,
            self.bad,
            self.extension,
        ]

    def step(self) -> None:
        self.draw.choice(self.steps)()

    def item_id(self) -> str:
        known = [one["item"]["id"] for one in self.client.of_type("conversation.item.added")]
        return self.draw.choice([*known[-6:], *self.names[:2]])

    def say(self) -> None:
        role = self.draw.choice(["user", "user", "assistant", "system"])
        previous = self.draw.choice([None, None, "root", self.item_id()])
        self.client.say("a word or two", role, self.draw.choice([None, *self.names]), previous)

    def hear(self) -> None:
        self.client.append(self.draw.choice([LOUD, QUIET, LOUD[:500], LOUD[:0]]))

    def commit(self) -> None:
        self.client.send("input_audio_buffer.commit")

    def clear(self) -> None:
        self.client.send(self.draw.choice(["input_audio_buffer.clear", "output_audio_buffer.clear"]))

    def answer(self) -> None:
        extra: dict[str, Any] = {"max_output_tokens": self.draw.choice([1, 5, 40, 120])}
        extra |= self.draw.choice(
            [{}, {}, {"conversation": "none"}, {"output_modalities": ["text"]}, {"metadata": {"a": "b"}}]
        )
        if self.draw.random() < 0.2:
            extra["input"] = [{"type": "item_reference", "id": self.item_id()}]
        self.client.send("response.create", response=extra)

    def cancel(self) -> None:
        self.client.send("response.cancel")

    def truncate(self) -> None:
        ms = self.draw.choice([0, 80, 500, 10**6])
        self.client.send(
            "conversation.item.truncate", item_id=self.item_id(), content_index=0, audio_end_ms=ms
        )

    def delete(self) -> None:
        self.client.send("conversation.item.delete", item_id=self.item_id())

    def retrieve(self) -> None:
        self.client.send("conversation.item.retrieve", item_id=self.item_id())

    def update(self) -> None:
        turns = self.draw.choice(
            [
                None,
                {"type": "server_vad", "silence_duration_ms": 200},
                {"type": "semantic_vad"},
                {"threshold": 3},
            ]
        )
        session = {"instructions": self.draw.choice(["", "Be brief."]), "turn_detection": turns}
        self.client.send("session.update", session=session)

    def bad(self) -> None:
        self.client.send_text(self.draw.choice(BAD))

    def extension(self) -> None:
        created = self.client.of_type("response.created")
        id = created[-1]["response"]["id"] if created else "none"
        self.client.send(
            "innervoice.playback.ack", response_id=id, played_ms=self.draw.choice([0, 50, 10**6])
        )


def check_order(events: list[dict[str, Any]]) -> None:
    """Each response has one end and no delta behind it; ids are unique; the chain of items is the list."""
    running: dict[str, None] = {}
    chain: list[str] = []
    created: Counter[str] = Counter()
    for event in events:
        kind = event["type"]
        if kind == "response.created":
            created[event["response"]["id"]] += 1
            running[event["response"]["id"]] = None
        elif kind == "response.done":
            assert event["response"]["id"] in running
            assert event["response"]["status"] != "in_progress"
            del running[event["response"]["id"]]
        elif kind.endswith(".delta") and "response_id" in event:
            assert event["response_id"] in running, "a delta outside its response"
        elif kind == "conversation.item.added":
            assert event["item"]["id"] not in chain
            previous = event["previous_item_id"]
            assert previous is None or previous in chain
            chain.insert(0 if previous is None else chain.index(previous) + 1, event["item"]["id"])
        elif kind == "conversation.item.deleted" and event["item_id"] in chain:
            chain.remove(event["item_id"])
    assert set(created.values()) <= {1}
    assert running == {}, "a response without an end"
    names = [event["event_id"] for event in events if "event_id" in event]
    assert len(names) == len(set(names))


async def live_through(context: ServerContext, seed: int, num_events: int) -> None:
    draw = random.Random(seed)
    async with connected(context, draw.choice(["ga", "ga", "beta"]), innervoice=str(seed % 2)) as client:
        await client.until("session.created")
        chaos = Chaos(client, seed)
        for _ in range(num_events):
            chaos.step()
            if draw.random() < 0.3:
                await client.settle(draw.choice([0.0, 0.0, 0.01, 0.05]))
        client.send("session.update", session={"turn_detection": None, "temperature": 0.0})
        client.send("response.cancel", event_id="last")
        client.say("Are you still there?", id="final")
        await client.until(
            "conversation.item.created" if client.is_beta else "conversation.item.added", id="final"
        )
        for _ in range(200):
            await client.settle(0.05)
            created, done = client.of_type("response.created"), client.of_type("response.done")
            if len(created) == len(done):
                break
        last = await last_answer(client)
        assert last["response"]["status"] in ("incomplete", "completed"), last["response"]["status_details"]
        if not client.is_beta:
            check_order(client.events)
            assert client.items_of_server(context) == chain_of(client.events)
        known = {"server_error"} & {one["error"]["code"] for one in client.of_type("error")}
        assert known == set()


async def last_answer(client: RealtimeClient) -> dict[str, Any]:
    """The end of one more response, asked for again while a turn that had waited is answered."""
    while True:
        response = {"max_output_tokens": 5, "metadata": {"is": "last"}}
        client.send("response.create", response=response, event_id="the last")
        while True:
            event = await client.next()
            if event["type"] == "response.done" and event["response"]["metadata"] == {"is": "last"}:
                return event
            if event["type"] == "error" and event["error"]["event_id"] == "the last":
                await client.until("response.done")
                break


def chain_of(events: list[dict[str, Any]]) -> list[str]:
    """The ids of the items in the order that the events tell."""
    chain: list[str] = []
    for event in events:
        if event["type"] == "conversation.item.added":
            previous = event["previous_item_id"]
            chain.insert(0 if previous is None else chain.index(previous) + 1, event["item"]["id"])
        elif event["type"] == "conversation.item.deleted" and event["item_id"] in chain:
            chain.remove(event["item_id"])
    return chain


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_events_leaves_a_session_that_answers(context: ServerContext, seed: int) -> None:
    run(live_through(context, seed, 60))


@pytest.mark.long
def test_twenty_thousand_events(context: ServerContext) -> None:
    async def work() -> None:
        for first in range(0, 200, 4):
            await asyncio.gather(*(live_through(context, 1000 + first + i, 100) for i in range(4)))

    run(work())
