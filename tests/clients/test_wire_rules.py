"""The rules by which the clients' wires are judged find each kind of disorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wire_rules import check_order
from wire_tap import Passed, Wire

Event = dict[str, Any]


def reply(number: int, previous: str) -> list[Event]:
    """The events of a spoken reply."""
    response, item = f"resp_{number}", f"reply_{number}"
    part = {"response_id": response, "item_id": item}
    return [
        {"type": "response.created", "response": {"id": response}},
        {"type": "response.output_item.added", "response_id": response, "item": {"id": item}},
        {"type": "conversation.item.added", "previous_item_id": previous, "item": {"id": item}},
        {"type": "response.content_part.added", **part},
        {"type": "response.output_audio_transcript.delta", **part},
        {"type": "response.output_audio.delta", **part},
        {"type": "response.output_audio.done", **part},
        {"type": "response.output_audio_transcript.done", **part},
        {"type": "response.content_part.done", **part},
        {"type": "response.output_item.done", "response_id": response, "item": {"id": item}},
        {"type": "conversation.item.done", "previous_item_id": previous, "item": {"id": item}},
        {"type": "response.done", "response": {"id": response}},
    ]


def turn(item: str, previous: str | None) -> list[Event]:
    """The events of a spoken turn."""
    return [
        {"type": "input_audio_buffer.speech_started", "item_id": item},
        {"type": "input_audio_buffer.speech_stopped", "item_id": item},
        {"type": "input_audio_buffer.committed", "item_id": item},
        {"type": "conversation.item.added", "previous_item_id": previous, "item": {"id": item}},
        {"type": "conversation.item.done", "previous_item_id": previous, "item": {"id": item}},
    ]


def conversation() -> list[Event]:
    """Two turns with their replies, the first of which the second turn interrupts."""
    session = {"audio": {"input": {"turn_detection": {"interrupt_response": True}}}}
    first, (started, *rest) = reply(1, "turn_1"), turn("turn_2", "reply_1")
    heard = [*turn("turn_1", None), *first[:6], started, *first[6:], *rest, *reply(2, "turn_2")]
    return [{"type": "session.created", "session": session}, *heard]


def check(events: list[Event]) -> None:
    log = [Passed("server", {"event_id": f"event_{i}", **event}, 0.0) for i, event in enumerate(events)]
    check_order(Wire("", {}, [], log))


def place(events: list[Event], type: str, last: bool = False) -> int:
    found = [i for i, event in enumerate(events) if event["type"] == type]
    return found[-1 if last else 0]


def without(type: str, last: bool = False) -> Callable[[list[Event]], None]:
    return lambda events: events.pop(place(events, type, last)) and None


def moved(type: str, by: int, last: bool = False) -> Callable[[list[Event]], None]:
    def change(events: list[Event]) -> None:
        at = place(events, type, last)
        events.insert(at + by, events.pop(at))

    return change


def renamed(kind: str, **fields: Any) -> Callable[[list[Event]], None]:
    return lambda events: events[place(events, kind)].update(fields)


def test_a_conversation_in_order() -> None:
    check(conversation())


@pytest.mark.parametrize(
    "change",
    [
        without("session.created"),
        without("response.done"),
        without("response.output_audio.done", last=True),
        without("input_audio_buffer.speech_started"),
        without("conversation.item.done"),
        moved("response.output_audio.delta", 1),  # behind the beginning of speech
        moved("response.output_audio.delta", 6, last=True),
        moved("response.content_part.added", -1),
        moved("response.output_item.done", 1, last=True),
        moved("conversation.item.added", 1),
        renamed("input_audio_buffer.committed", item_id="turn_9"),
        renamed("conversation.item.added", previous_item_id="turn_9"),
        renamed("response.created", event_id="event_0"),
        renamed("response.output_audio.done", type="innervoice.segment"),
    ],
)
def test_disorder_is_found(change: Callable[[list[Event]], None]) -> None:
    events = conversation()
    change(events)
    with pytest.raises(AssertionError):
        check(events)
