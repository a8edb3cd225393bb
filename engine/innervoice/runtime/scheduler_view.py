"""What the scheduler knows of each reply, written down from the replies themselves. Reads no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import Phase, ReplyColumns
from innervoice.runtime.session_state import SessionState
from innervoice.schedule import (
    Cursor,
    FreeCursor,
    OpenReflection,
    Program,
    TokenKind,
    make_cursor,
    reflection_ahead,
    spoken_until,
)

Entry = Request | ActiveReply | SessionState
"""Who stands in a place of the table: a reply that waits, one that runs, or a user who still speaks."""


_PREFILL, _VOICING = int(Phase.PREFILL), int(Phase.VOICING)
_TRANSCRIPT, _SPEECH = TokenKind.TRANSCRIPT, TokenKind.SPEECH


@dataclass
class _Ahead:
    """What comes of a cursor, as of one of its rows: valid while it stays there, by its count."""

    row: int
    last_border: int
    border: int
    count: int
    spoken_left: int
    reflection: OpenReflection | None


class SchedulerView:
    """The table of jobs and who stands where."""

    def __init__(self, voice: SpeechOutput | None) -> None:
        self.jobs = ReplyColumns()
        self._voice = voice
        self._streams = voice is not None and voice.next_border(0) is not None
        self._entries: dict[int, Entry] = {}
        self._ahead: dict[int, _Ahead] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_prompts_ahead(self) -> bool:
        """Whether a user who still speaks has said something that is not fed yet."""
        places = self.jobs.places
        return bool((self.jobs.is_listening[places] & (self.jobs.prompt_left[places] > 0)).any())

    def at(self, place: int) -> Entry:
        """Who stands there."""
        return self._entries[place]

    def enter(self, request: Request, now: float, *, num_tokens: int, num_cached: int, num_pages: int) -> int:
        """A reply that waits; its place. num_tokens: of history and prompt; num_cached and num_pages: what its row has."""
        jobs = self.jobs
        place = jobs.add(now, priority=request.priority)
        self._entries[place] = request
        jobs.submitted_s[place] = request.submitted_s
        jobs.context[place], jobs.pages[place] = num_tokens, num_pages
        jobs.prompt_left[place] = jobs.prompt_len[place] = max(num_tokens - num_cached, 1)
        jobs.is_live[place] = request.is_live and self._streams
        jobs.spoken_rate[place] = self._spoken_rate(request.program)
        self._look_ahead(place, make_cursor(request.program, request.caps), num_speech=0)
        return place

    def enter_listener(self, dialogue: SessionState) -> int:
        """A user who still speaks: what is known of the prompt is fed ahead."""
        jobs = self.jobs
        place = jobs.add(0.0)
        self._entries[place] = dialogue
        jobs.phase[place], jobs.is_listening[place] = Phase.PREFILL, True
        return place

    def start(self, running: ActiveReply) -> None:
        """A reply has got its row: it stands where its request stood."""
        self._entries[running.place] = running

    def leave(self, place: int) -> None:
        """Forget who stands there."""
        self.jobs.remove(place)
        del self._entries[place]
        self._ahead.pop(place, None)

    def update_listener(self, dialogue: SessionState) -> None:
        """Write down what a step did for a user who still speaks."""
        place, jobs, row = dialogue.draft_place, self.jobs, dialogue.row
        assert place is not None, "nobody listens"
        jobs.context[place], jobs.pages[place], jobs.prompt_left[place] = (
            len(row.ids),
            len(row.table.pages),
            row.num_new,
        )

    def update(self, running: ActiveReply) -> None:
        """Write down where a reply stands now."""
        place, jobs, row = running.place, self.jobs, running.row
        jobs.context[place], jobs.pages[place] = len(row.ids), len(row.table.pages)
        jobs.hidden_total[place], jobs.num_drawn[place] = running.num_hidden, running.num_tokens
        if jobs.phase[place] == _PREFILL:
            jobs.prompt_left[place] = row.num_new
        if running.finish is not None:
            jobs.phase[place], jobs.prompt_left[place], jobs.is_reflecting[place] = _VOICING, 0, False
        else:
            self._look_ahead(place, running.cursor, running.num_speech)
        self.update_sound(running)

    def update_sound(self, running: ActiveReply) -> None:
        """Write down what was sent of its sound, and what is still to be made."""
        if self._voice is None:
            return
        place, jobs = running.place, self.jobs
        made_s = running.num_samples / self._voice.sample_rate
        jobs.unvoiced_s[place] = max(0.0, running.num_speech / self._voice.codes_per_s - made_s)
        jobs.sound_total_s[place] = made_s
        jobs.has_sound[place] = running.playback.has_begun
        jobs.sound_end_s[place] = running.playback.dry_s if running.playback.has_begun else 0.0

    def update_ready(self, ready: Sequence[tuple[ActiveReply, int]]) -> None:
        """Write down whose next chunk the codec can make; with each, the codes that wait for it."""
        assert self._voice is not None, "no voice, no chunks"
        jobs = self.jobs
        jobs.chunks_ready[jobs.places], jobs.ready_s[jobs.places] = 0, 0.0
        for running, pending in ready:
            jobs.chunks_ready[running.place] = 1
            chunk = (
                pending
                if running.finish is not None
                else pending - running.num_speech + self._last_border(running.place)
            )
            jobs.ready_s[running.place] = max(chunk, 0) / self._voice.codes_per_s

    def _last_border(self, place: int) -> int:
        """Codes of the chunks that are complete."""
        return self._ahead[place].last_border

    def _look_ahead(self, place: int, cursor: Cursor | FreeCursor, num_speech: int) -> None:
        jobs = self.jobs
        border = self._border(num_speech)
        row, count = cursor.row, cursor.count
        ahead = self._ahead.get(place)
        if ahead is None or row < 0 or (ahead.row, ahead.border) != (row, border):
            last = 0 if ahead is None else ahead.last_border
            if self._streams and self._voice is not None and (ahead is None or ahead.border != border):
                last = 0 if ahead is None else ahead.border
                jobs.chunk_s[place] = (border - last) / self._voice.codes_per_s
            ahead = _Ahead(
                row, last, border, count, spoken_until(cursor, border - num_speech), reflection_ahead(cursor)
            )
            self._ahead[place] = ahead
        spoken = cursor.kind is _SPEECH or cursor.kind is _TRANSCRIPT
        jobs.spoken_left[place] = max(ahead.spoken_left - (count - ahead.count if spoken else 0), 0)
        reflection = ahead.reflection
        if reflection is None:
            jobs.is_reflecting[place], jobs.hidden_most[place] = False, 0
            return
        jobs.is_reflecting[place], jobs.hidden_most[place] = reflection.is_open, reflection.most
        jobs.hidden_count[place] = count if reflection.is_open else 0
        jobs.hidden_floor[place] = cursor.program.schedule.floor
        jobs.hidden_cap[place] = cursor.limit if reflection.is_open else reflection.most

    def _border(self, num_speech: int) -> int:
        border = None if self._voice is None else self._voice.next_border(num_speech)
        return num_speech if border is None else border

    def _spoken_rate(self, program: Program) -> float:
        """Transcript and speech tokens a second of sound, as the cycle has them."""
        if self._voice is None:
            return 0.0
        tokens = {"speech": 0, "transcript": 0}
        for segment in program.schedule.cycle:
            if segment.kind in tokens and segment.budget is not None:
                tokens[segment.kind] += segment.budget
        share = tokens["transcript"] / tokens["speech"] if tokens["speech"] else 0.0
        return self._voice.codes_per_s * (1 + share)
