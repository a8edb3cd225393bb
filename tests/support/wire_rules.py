"""The order of events that the Realtime protocol asks of a server, checked on what a tap recorded."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from wire_tap import Wire

Event = dict[str, Any]

# Letters for the events of one reply, so that their order is a regular expression.
LETTERS = {
    "response.created": "c",
    "response.output_item.added": "o",
    "conversation.item.added": "i",
    "response.content_part.added": "p",
    "response.output_audio_transcript.delta": "t",
    "response.output_audio.delta": "a",
    "response.output_audio.done": "A",
    "response.output_audio_transcript.done": "T",
    "response.content_part.done": "P",
    "response.function_call_arguments.delta": "d",
    "response.function_call_arguments.done": "D",
    "response.output_item.done": "O",
    "conversation.item.done": "I",
    "response.done": "C",
}
REPLY = re.compile("c(oip[ta]*ATPOI(oidDOI)*|(oidDOI)+)C")


def check_order(wire: Wire) -> None:
    """Check all that a server sent on one connection of the protocol's general availability.

    Raises AssertionError for the first rule that is broken.
    """
    events = wire.sent
    assert events[0]["type"] == "session.created", "the server speaks first"
    names = Counter(event["event_id"] for event in events)
    assert set(names.values()) == {1}, "each event has an id of its own"
    assert not [event for event in events if event["type"].startswith("innervoice.")], (
        "no client asked for these"
    )
    for response in [event["response"]["id"] for event in events if event["type"] == "response.created"]:
        check_reply(events, response, is_over=wire.close_code is None)
    check_turns(events)
    check_chain(events)


def check_reply(events: list[Event], response_id: str, is_over: bool = True) -> None:
    """Check that a reply opens, speaks, calls tools and closes in order; is_over: it must have been closed."""
    items = {
        event["item"]["id"]
        for event in events
        if event["type"] == "response.output_item.added" and event["response_id"] == response_id
    }
    letters = ""
    for event in events:
        of_reply = response_id in (event.get("response_id"), event.get("response", {}).get("id"))
        of_item = event["type"].startswith("conversation.item.") and event.get("item", {}).get("id") in items
        if (of_reply or of_item) and event["type"] != "conversation.item.retrieved":
            letters += LETTERS[event["type"]]
    if is_over:
        assert REPLY.fullmatch(letters), f"the events of {response_id} came as {letters}"


def check_turns(events: list[Event]) -> None:
    """Check that turns begin and end by turns, and that no reply that was running goes on after speech began."""
    speaking: str | None = None
    running: set[str] = set()
    cut: set[str] = set()
    interrupts = False
    for place, event in enumerate(events):
        kind = event["type"]
        if kind in ("session.created", "session.updated"):
            turns = event["session"]["audio"]["input"]["turn_detection"]
            interrupts = turns is not None and turns["interrupt_response"]
        elif kind == "response.created":
            running.add(event["response"]["id"])
        elif kind == "response.done":
            running.discard(event["response"]["id"])
        elif kind == "input_audio_buffer.speech_started":
            assert speaking is None, "speech began twice"
            speaking = event["item_id"]
            cut |= running if interrupts else set()
        elif kind == "input_audio_buffer.speech_stopped":
            assert event["item_id"] == speaking, "speech ended that had not begun"
        elif kind == "input_audio_buffer.committed":
            assert speaking in (None, event["item_id"]), "the turn got another item than was announced"
            speaking = None
            shown = [(one["type"], one.get("item", {}).get("id")) for one in events[place + 1 : place + 3]]
            assert shown == [(f"conversation.item.{name}", event["item_id"]) for name in ("added", "done")]
        elif kind.endswith(".delta"):
            assert event["response_id"] in running - cut, "a delta after the end, or after speech began"


def check_chain(events: list[Event]) -> list[str]:
    """Check that each new item names the one before it -> the items' ids in the order of the conversation."""
    chain: list[str] = []
    done: Counter[str] = Counter()
    for event in events:
        kind = event["type"]
        if kind == "conversation.item.added":
            previous, name = event["previous_item_id"], event["item"]["id"]
            assert name not in chain, f"{name} was added twice"
            assert previous is None or previous in chain, f"{name} follows {previous}, which there is not"
            chain.insert(0 if previous is None else chain.index(previous) + 1, name)
        elif kind == "conversation.item.done":
            done[event["item"]["id"]] += 1
        elif kind == "conversation.item.deleted" and event["item_id"] in chain:
            chain.remove(event["item_id"])
    assert set(done.values()) <= {1}, "an item was done twice"
    return chain
