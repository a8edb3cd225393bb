"""The `innervoice.*` events of a reply, for clients that asked for them: reflections, segments and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from innervoice.schedule import UNLIMITED
from innervoice.server.realtime.protocol.server_events import ServerEvent
from innervoice.types import Event as EngineEvent
from innervoice.types import Reflection, ReflectionBudget, Speech, TokenEvent, Usage


@dataclass
class _Segment:
    """A segment that is being decoded; start_code: speech tokens of the reply before it."""

    number: int
    kind: str
    start_code: int
    name: str | None = None
    choice: str | None = None
    t_s: float = 0.0
    num_tokens: int = 0
    is_forced: bool = True
    text: str = ""
    budget: ReflectionBudget | None = None
    opening: ReflectionBudget | None = None
    has_opened: bool = False

    def take(self, event: TokenEvent) -> None:
        """Count an event of this segment."""
        self.t_s = event.t
        self.num_tokens += len(event.ids)
        self.is_forced = self.is_forced and event.forced
        self.choice = self.choice or event.choice
        if isinstance(event, Reflection) and event.budget is not None:
            self.budget = event.budget
            self.opening = self.opening or event.budget

    @property
    def called(self) -> dict[str, str]:
        """Its name in the schedule and the text that it chose, as far as it has them."""
        known = {"name": self.name, "choice": self.choice}
        return {key: value for key, value in known.items() if value is not None}

    @property
    def thought(self) -> dict[str, Any]:
        """The fields of a reflection's budget: its cap, what it has spent of it, and the reserve when it opened.

        A cap that fell below the tokens spent has ended the reflection, and is given as their number.
        """
        if self.budget is None or self.opening is None:
            return {"cap": None, "spent": 0, "reserve_ms": None}
        cap, spent = self.budget.cap, self.budget.spent
        return {
            "cap": None if cap is None else max(cap, spent),
            "spent": spent,
            "reserve_ms": round(1e3 * self.opening.reserve_s),
        }


@dataclass
class ReplyExtensions:
    """Events beside the protocol's.

    kinds: "reflection" and "timeline", those that are wanted; put: sends an event, whose second argument says
    whether it is a delta.
    """

    response_id: str
    item_id: str
    kinds: frozenset[str]
    put: Callable[[ServerEvent, bool], None]
    codes_per_s: float
    _segment: _Segment | None = None
    _num_codes: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    def take(self, event: EngineEvent) -> None:
        """Take the next event of the engine's stream."""
        if not self.kinds or not isinstance(event, TokenEvent):
            return
        if self._segment is None or self._segment.number != event.segment:
            self._close()
            self._segment = _Segment(event.segment, event.kind, self._num_codes, event.name)
        if event.budget is not None and event.budget.num_skipped and "reflection" in self.kinds:
            self._send_skipped(event.t, event.budget)
        segment = self._segment
        segment.take(event)
        if isinstance(event, Speech):
            self._num_codes += len(event.ids)
        if isinstance(event, Reflection) and "reflection" in self.kinds:
            self._reflect(segment, event)

    def end(self, usage: Usage | None) -> None:
        """Close the last segment, and send the figures of the reply; None: it was stopped before there were any."""
        if not self.kinds:
            return
        self._close()
        if usage is not None and "timeline" in self.kinds:
            self._send(
                "innervoice.response.stats",
                False,
                ttft_ms=usage.ttft_ms,
                audio_ttfp_ms=usage.audio_ttfp_ms,
                first_chunk_s=usage.first_chunk_s,
                audio_rtf=usage.audio_rtf,
                hidden_before_audio=usage.hidden_before_audio,
                reflection_tokens=usage.reflection_tokens,
                reflection_caps=[None if cap >= UNLIMITED else cap for cap in usage.reflection_caps],
            )

    def _reflect(self, segment: _Segment, event: Reflection) -> None:
        """Send the budget of a reflection that opens, none of a choice, and its text; injected text opens nothing."""
        segment.text += event.text
        if not segment.has_opened and (segment.opening is not None or not event.forced):
            segment.has_opened = True
            fields = {"segment": segment.number, "t_ms": _ms(event.t), **segment.called, **segment.thought}
            self._send("innervoice.reflection.started", True, **fields)
        if event.text:
            fields = {"segment": segment.number, "delta": event.text, **segment.called}
            if event.budget is not None:
                fields |= segment.thought | {"reserve_ms": round(1e3 * event.budget.reserve_s)}
            self._send("innervoice.reflection.delta", True, **fields)

    def _send_skipped(self, t_s: float, budget: ReflectionBudget) -> None:
        fields = {"num_skipped": budget.num_skipped, "t_ms": _ms(t_s)}
        self._send("innervoice.reflection.skipped", True, reserve_ms=round(1e3 * budget.reserve_s), **fields)

    def _close(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        if segment.kind == "reflection" and "reflection" in self.kinds:
            self._send(
                "innervoice.reflection.done",
                False,
                segment=segment.number,
                text=segment.text,
                num_tokens=segment.num_tokens,
                injected=segment.is_forced,
                **segment.called,
                **segment.thought,
            )
        if "timeline" in self.kinds:
            index = self._counts.get(segment.kind, 0)
            self._counts[segment.kind] = index + 1
            self._send("innervoice.segment", False, index=index, **self._described(segment))

    def _described(self, segment: _Segment) -> dict[str, Any]:
        made: dict[str, Any] = {
            "segment": segment.number,
            "kind": segment.kind,
            "t_ms": _ms(segment.t_s),
            "num_tokens": segment.num_tokens,
            "forced": segment.is_forced,
        }
        made |= segment.called
        if segment.kind == "reflection":
            made |= segment.thought
        if segment.kind == "speech" and self.codes_per_s > 0:
            made["audio_start_ms"] = round(1e3 * segment.start_code / self.codes_per_s)
            made["audio_end_ms"] = round(1e3 * self._num_codes / self.codes_per_s)
        return made

    def _send(self, type: str, is_delta: bool, **fields: Any) -> None:
        head: ServerEvent = {"type": type, "response_id": self.response_id, "item_id": self.item_id}
        self.put(head | fields, is_delta)


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)
