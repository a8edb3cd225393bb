"""ReplyOutput: the events of the protocol that a reply becomes. Pure: it sends nothing and reads no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from innervoice.server.realtime.items import ConversationItem, Part, Status
from innervoice.server.realtime.protocol import response_events, server_events
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.response_events import OutputEvents, ReplyEnding, ResponseHead
from innervoice.server.realtime.protocol.server_events import ServerEvent
from innervoice.server.realtime.protocol.session_config import rate_of
from innervoice.server.realtime.sound_format import encode
from innervoice.server.realtime.spoken_text import SpokenText
from innervoice.types import AudioChunk, Pcm16, Speech, Tool, ToolCall, Transcript
from innervoice.types import Event as EngineEvent

MAX_DELTA_S = 0.5
DELTAS = (
    "response.output_audio.delta",
    "response.output_audio_transcript.delta",
    "response.output_text.delta",
)


@dataclass(frozen=True)
class Delta:
    """A delta to be sent; audio_s: seconds of its sound."""

    event: ServerEvent
    audio_s: float = 0.0


class ReplyOutput:
    """One reply, from `response.created` to `response.done`.

    item: the assistant's item, which grows with the deltas; of a reply that only calls tools it becomes the first
    call. is_in_band: whether the item belongs to the conversation, so that it is announced there too. may_call:
    whether the reply may call tools, so that its message is opened only when it says something. calls: those
    that it has made.
    """

    def __init__(
        self,
        head: ResponseHead,
        item: ConversationItem,
        codes_per_s: float,
        is_in_band: bool = True,
        may_call: bool = False,
    ) -> None:
        self.head = head
        self.item = item
        self.is_in_band = is_in_band
        self.may_call = may_call
        self.is_open = False
        self.calls: list[ToolCall] = []
        self.spoken = SpokenText()
        self.audio_s = 0.0
        self._codes_per_s = codes_per_s
        self._num_codes = 0
        self._held: list[tuple[str, int, float]] = []
        self._out = OutputEvents(head.id, item.id)
        self._rate = rate_of(head.output_format)
        self._has_codes_per_s = codes_per_s > 0

    @property
    def has_held(self) -> bool:
        """Whether text waits to be sent together with more."""
        return bool(self._held)

    def begin(self, previous: str | None) -> list[ServerEvent]:
        """Open the response's message and its part."""
        self.is_open = True
        self.item.status = "in_progress"
        made = [self._out.item_added(self.item)]
        if self.is_in_band:
            made.append(server_events.item_added(self.item.to_json(), previous))
        self.item.content = [Part("output_audio" if self.head.modality == "audio" else "output_text")]
        return [*made, self._out.part_added(self.head.modality)]

    def says(self, event: EngineEvent) -> bool:
        """Whether an event of the engine belongs into the message."""
        return isinstance(event, AudioChunk) or (isinstance(event, Transcript) and bool(event.text))

    def take(self, event: EngineEvent) -> list[Delta]:
        """Turn an event of the engine into deltas; text is held until something else follows, or `flush`."""
        if isinstance(event, Transcript):
            made = self.flush() if self._held and self._held[-1][1] != event.segment else []
            if event.text:
                self._held.append((event.text, event.segment, self._now_s()))
            return made
        made = self.flush()
        if isinstance(event, Tool) and event.call is not None:
            self.calls.append(event.call)
        if isinstance(event, Speech):
            self._num_codes += len(event.ids)
        elif isinstance(event, AudioChunk) and self.head.modality == "audio":
            made += self._sound(event.to_pcm16())
        return made

    def flush(self) -> list[Delta]:
        """Give out the text that is held, as one delta."""
        if not self._held:
            return []
        text, start_s = "".join(text for text, _, _ in self._held), self._held[0][2]
        self._held = []
        self.spoken.add(text, start_s)
        return [Delta(self._out.text_delta(self.head.modality, text, start_s))]

    def _now_s(self) -> float:
        """Seconds of sound of the codes so far: where the text at hand begins to be spoken."""
        return self._num_codes / self._codes_per_s if self._has_codes_per_s else 0.0

    def _sound(self, pcm: Pcm16) -> list[Delta]:
        size = int(MAX_DELTA_S * self._rate)
        made = []
        for start in range(0, len(pcm), size):
            piece = pcm[start : start + size]
            seconds = len(piece) / self._rate
            self.audio_s += seconds
            made.append(Delta(self._out.audio_delta(encode(piece, self.head.output_format)), seconds))
        return made

    def take_back(self, unsent: Iterable[ServerEvent]) -> None:
        """Forget deltas that were never sent."""
        self._held = []
        num_characters, num_bytes = 0, 0
        for event in unsent:
            if event["type"] == "response.output_audio.delta":
                num_bytes += len(event["delta"])
            elif event["type"] in DELTAS:
                num_characters += len(event["delta"])
        self.spoken.keep_first(len(self.spoken.text) - num_characters)
        width = 2 if self.head.output_format == "audio/pcm" else 1
        self.audio_s = max(0.0, self.audio_s - num_bytes / width / self._rate)

    def call_items(self) -> list[ConversationItem]:
        """Make items of the calls that could be read; the reply's own where it has no message."""
        made: list[ConversationItem] = []
        for call in self.calls:
            if call.error is not None:
                continue
            item = self.item
            if made or self.is_open:
                item = ConversationItem(new_id("item"))
            item.type, item.role, item.content = "function_call", None, []
            item.name, item.call_id, item.arguments = call.name, new_id("call"), call.arguments
            made.append(item)
        return made

    def end(
        self,
        ending: ReplyEnding,
        usage: dict[str, Any] | None,
        previous: str | None,
        calls: Sequence[tuple[ConversationItem, str | None]] = (),
    ) -> list[ServerEvent]:
        """Close the message, show the calls, each with the item before it, and close the response."""
        made = self._close(ending, previous) if self.is_open else []
        output = [self.item] if self.is_open else []
        for item, before in calls:
            made += self._show_call(item, before, len(output))
            output.append(item)
        return [*made, response_events.done(self.head, ending, output, usage)]

    def _show_call(self, item: ConversationItem, previous: str | None, index: int) -> list[ServerEvent]:
        out = OutputEvents(self.head.id, item.id, index)
        begun = replace(item, status="in_progress", arguments="")
        item.status = "completed"
        made = [out.item_added(begun)]
        if self.is_in_band:
            made.append(server_events.item_added(begun.to_json(), previous))
        made.append(out.arguments_delta(item.call_id, item.arguments))
        made.append(out.arguments_done(item.call_id, item.name, item.arguments))
        made.append(out.item_done(item))
        if self.is_in_band:
            made.append(server_events.item_done(item.to_json(), previous))
        return made

    def _close(self, ending: ReplyEnding, previous: str | None) -> list[ServerEvent]:
        """Close part and message, which takes the text that was sent."""
        modality, text = self.head.modality, self.spoken.text
        if self.item.content:
            self.item.content[0].text = text
        self.item.status = _item_status(ending)
        made = [self._out.audio_done()] if modality == "audio" else []
        made += [self._out.text_done(modality, text), self._out.part_done(modality, text)]
        made.append(self._out.item_done(self.item))
        if self.is_in_band:
            made.append(server_events.item_done(self.item.to_json(), previous))
        return made


def _item_status(ending: ReplyEnding) -> Status:
    return "completed" if ending.status == "completed" else "incomplete"
