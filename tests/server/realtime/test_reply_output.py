"""Pure parts of a reply: its events for events of the engine, text along its sound, and taking back."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice import AudioChunk, Reflection, Speech, Transcript
from innervoice.server.realtime.items import ConversationItem
from innervoice.server.realtime.protocol.response_events import ReplyEnding, ResponseHead
from innervoice.server.realtime.reply_output import ReplyOutput
from innervoice.server.realtime.spoken_text import SpokenText

CODES_PER_S = 12.5


def output(format: str = "audio/pcm") -> ReplyOutput:
    head = ResponseHead("resp_1", "conv_1", "audio", "inf", format, None)  # type: ignore[arg-type]
    return ReplyOutput(head, ConversationItem("item_1", role="assistant"), CODES_PER_S)


def text(words: str, segment: int) -> Transcript:
    return Transcript(reply_id="r", index=0, t=0.0, segment=segment, ids=[1], text=words)


def speech(num: int, segment: int) -> Speech:
    codes = np.zeros(num, dtype=np.int32)
    return Speech(reply_id="r", index=0, t=0.0, segment=segment, ids=[2] * num, codes=codes)


def sound(num: int) -> AudioChunk:
    return AudioChunk(reply_id="r", index=0, t=0.0, pcm=np.arange(num).astype(np.int16), rate=24000, start=0)


def test_text_is_joined_and_carries_the_time_at_which_it_is_spoken() -> None:
    made = output()
    hidden = Reflection(reply_id="r", index=0, t=0.0, segment=0, ids=[3], text="hm")
    events = [
        hidden,
        text("Good ", 1),
        text("", 1),
        text("day", 1),
        speech(25, 2),
        text(" to", 3),
        text(" you", 3),
    ]
    deltas = [delta for event in events for delta in made.take(event)] + made.flush()
    assert [(one.event["delta"], one.event["start_time"]) for one in deltas] == [
        ("Good day", 0.0),
        (" to you", 2.0),
    ]
    assert made.spoken.text == "Good day to you"


def test_sound_is_cut_into_short_deltas_and_what_was_not_sent_is_forgotten() -> None:
    made = output()
    deltas = made.take(text("Good day", 0)) + made.take(sound(30000))
    sizes = [len(one.event["delta"]) for one in deltas[1:]]
    assert sizes == [24000, 24000, 12000]
    assert b"".join(one.event["delta"] for one in deltas[1:]) == np.arange(30000).astype("<i2").tobytes()
    made.take_back([deltas[-1].event])
    assert made.audio_s == 1.0
    made.take_back([one.event for one in deltas[:-1]])
    assert (made.audio_s, made.spoken.text) == (0.0, "")
    end = made.end(ReplyEnding("cancelled", "turn_detected"), None, None)
    assert end[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


PIECES = st.lists(st.tuples(st.text(max_size=6), st.floats(0, 3)), max_size=6)


@settings(deadline=None)
@given(PIECES, st.floats(0, 20), st.floats(0, 20))
def test_what_was_heard_is_a_beginning_of_the_transcript_and_grows_with_time(
    pieces: list[tuple[str, float]], first_s: float, second_s: float
) -> None:
    spoken, start_s = SpokenText(), 0.0
    for words, gap_s in pieces:
        start_s += gap_s
        spoken.add(words, start_s)
    end_s = start_s + 1.0
    less, more = (spoken.until(heard_s, end_s) for heard_s in sorted((first_s, second_s)))
    assert more.startswith(less)
    assert spoken.text.startswith(more)
    assert spoken.until(end_s, end_s) == spoken.text
    spoken.keep_first(len(more))
    assert spoken.text == more


def test_a_reply_without_items_shows_what_it_has() -> None:
    made = output()
    begin: list[dict[str, Any]] = made.begin("before")
    assert [one["type"] for one in begin] == [
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert begin[0]["item"]["content"] == []
    assert begin[1]["previous_item_id"] == "before"
    assert begin[0]["item"]["status"] == "in_progress"
