"""Messages of clients: those that are read, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.server.realtime.protocol.client_events import (
    TYPES,
    AudioAppend,
    BadEvent,
    ItemTruncate,
    decode,
)


def test_events_are_read_with_base64_decoded_and_unknown_fields_ignored() -> None:
    event = decode('{"type":"input_audio_buffer.append","audio":"AAEC","event_id":"e1","more":[1]}')
    assert event == AudioAppend(event_id="e1", audio=b"\0\1\2")
    cut = decode(b'{"type":"conversation.item.truncate","item_id":"i","content_index":0,"audio_end_ms":12}')
    assert cut == ItemTruncate(item_id="i", audio_end_ms=12.0)


BAD: list[tuple[Any, str, str | None, str | None]] = [
    ("no json", "invalid_json", None, None),
    ("{", "invalid_json", None, None),
    (b"\xff\xfe", "invalid_json", None, None),
    ('{"type": "\\ud800"}', "invalid_json", None, None),
    ("[" * 100_000, "invalid_json", None, None),
    ([1], "missing_required_parameter", "type", None),
    ({"event_id": "e"}, "missing_required_parameter", "type", "e"),
    ({"type": "session.destroy", "event_id": "e"}, "unknown_event", "type", "e"),
    ({"type": ["x"], "event_id": "e"}, "unknown_event", "type", "e"),
    ({"type": "session.update", "event_id": "e"}, "missing_required_parameter", "session", "e"),
    ({"type": "session.update", "session": 3}, "invalid_value", "session", None),
    ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value", "audio", None),
    ({"type": "input_audio_buffer.append", "audio": 1}, "invalid_value", "audio", None),
    (
        {"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": -1},
        "invalid_value",
        "audio_end_ms",
        None,
    ),
    ({"type": "conversation.item.delete", "item_id": ""}, "invalid_value", "item_id", None),
    ({"type": "session.update", "session": {}, "innervoice": {}}, "unknown_parameter", "innervoice", None),
    ({"type": "response.create", "modalities": ["text"]}, "unknown_parameter", "modalities", None),
    ({"type": "response.cancel", "event_id": 5}, "invalid_value", "event_id", None),
]


@pytest.mark.parametrize(("message", "code", "param", "event_id"), BAD)
def test_a_bad_message_is_explained(message: Any, code: str, param: str | None, event_id: str | None) -> None:
    with pytest.raises(BadEvent) as caught:
        decode(message if isinstance(message, str | bytes) else json.dumps(message))
    assert (caught.value.error.code, caught.value.error.param) == (code, param)
    assert caught.value.event_id == event_id
    assert len(caught.value.error.message) < 400


@settings(deadline=None)
@given(st.binary(max_size=40) | st.dictionaries(st.text(max_size=5), st.integers()).map(json.dumps))
def test_any_message_is_an_event_or_a_bad_one(message: str | bytes) -> None:
    refused = None
    try:
        decode(message)
    except BadEvent as bad:
        refused = bad
    assert refused is None or refused.error.code in (
        "invalid_json",
        "missing_required_parameter",
        "invalid_value",
    )


def test_the_eleven_events_of_the_protocol_are_known() -> None:
    from openai.types.realtime import RealtimeClientEvent

    kinds = RealtimeClientEvent.__origin__.__args__  # type: ignore[attr-defined]
    named = {kind.model_fields["type"].annotation.__args__[0] for kind in kinds}
    assert named <= TYPES
