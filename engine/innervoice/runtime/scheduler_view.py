"""Writes the facts of replies and sessions into the scheduler's columns. Reads no clock."""

from __future__ import annotations

from dataclasses import dataclass

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.fused_contexts import FusedContexts, fused_tokens
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

# Plain numbers and names looked up once: this runs for each token.
_PREFILL = int(Phase.PREFILL)
_VOICING = int(Phase.VOICING)
_TRANSCRIPT = TokenKind.TRANSCRIPT
_SPEECH = TokenKind.SPEECH


@dataclass(slots=True)
class _Ahead:
    """The tokens ahead of a cursor, counted at one state of its program: valid, less those emitted since,
    while it stays there.

    row: the state; count: tokens spent in it then. last_border, border: of codes, around the open chunk.
    """

    row: int
    last_border: int
    border: int
    count: int
    spoken_left: int
    reflection: OpenReflection | None


class SchedulerView:
    """Writes one reply or session into its row of the columns, which the planner reads."""

    def __init__(self, speech: SpeechOutput) -> None:
        self.columns = ReplyColumns()
        self._speech = speech
        self._codes_per_s = speech.codes_per_s
        self._sample_rate = speech.sample_rate
        self._streams = speech.next_border(0) is not None
        self._ahead: dict[int, _Ahead] = {}

    def add_request(
        self, request: Request, now: float, *, num_tokens: int, num_cached: int, num_pages: int
    ) -> int:
        """A new row for a request that waits -> its index.

        num_tokens: of history and prompt; the others: of its sequence.
        """
        columns = self.columns
        index = columns.add(now, priority=request.priority)
        try:
            self._fill_request(index, request, num_tokens, num_cached, num_pages)
        except BaseException:
            self.remove(index)
            raise
        return index

    def _fill_request(
        self, index: int, request: Request, num_tokens: int, num_cached: int, num_pages: int
    ) -> None:
        columns = self.columns
        columns.submitted_s[index] = request.submitted_s
        columns.context[index] = num_tokens
        columns.more_rows[index] = len(request.contexts)
        columns.pages[index] = num_pages
        columns.prompt_left[index] = columns.prompt_len[index] = max(num_tokens - num_cached, 1)
        columns.is_live[index] = request.is_live and self._streams
        columns.spoken_rate[index] = self._spoken_rate(request.program)
        self._look_ahead(index, make_cursor(request.program, request.caps), num_speech=0)

    def add_prefetch(self) -> int:
        """A new row for the prompt of a user who still speaks -> its index."""
        index = self.columns.add(0.0)
        self.columns.phase[index] = Phase.PREFILL
        self.columns.is_listening[index] = True
        return index

    def remove(self, index: int) -> None:
        """Free a row."""
        self.columns.remove(index)
        self._ahead.pop(index, None)

    def update_prefetch(self, session: SessionState) -> None:
        """Write how much of a session's prefetched prompt is fed."""
        index, columns, sequence = session.table_index, self.columns, session.sequence
        assert index is not None, "the session prefetches nothing"
        columns.context[index] = len(sequence.ids)
        columns.pages[index] = len(sequence.table.pages)
        columns.prompt_left[index] = sequence.num_new

    def update(self, reply: ActiveReply) -> None:
        """Write everything about a reply but its sound."""
        index, columns, sequence = reply.table_index, self.columns, reply.sequence
        columns.context[index] = len(sequence.ids)
        columns.pages[index] = len(sequence.table.pages)
        columns.hidden_total[index] = reply.num_hidden
        columns.num_drawn[index] = reply.num_tokens
        if columns.phase[index] == _PREFILL:
            columns.prompt_left[index] = sequence.num_new
        if not reply.is_plain:
            self._update_more(index, reply)
        if reply.finish is None:
            self._look_ahead(index, reply.cursor, reply.num_speech)
        else:
            columns.phase[index] = _VOICING
            columns.more_rows[index] = 0
            columns.prompt_left[index] = 0
            columns.is_reflecting[index] = False
        made_s = reply.num_samples / self._sample_rate
        columns.unvoiced_s[index] = max(0.0, reply.num_speech / self._codes_per_s - made_s)

    def _update_more(self, index: int, reply: ActiveReply) -> None:
        """Write whether a reply waits for ids, whose last token is then not fed, and count its contexts."""
        columns, waits = self.columns, reply.cursor.waits and reply.finish is None
        columns.is_waiting[index] = waits
        if columns.phase[index] == _PREFILL:
            columns.prompt_left[index] -= waits
        if reply.fused is not None:
            self._add_contexts(index, reply.fused, waits=waits)

    def _add_contexts(self, index: int, fused: FusedContexts, *, waits: bool) -> None:
        """Count the contexts of a reply beside its prompt."""
        columns, sequences = self.columns, fused.sequences
        page_size = sequences[0].table.page_size
        columns.context[index] += fused_tokens((len(sequence.ids) for sequence in sequences), page_size)
        columns.pages[index] += sum(len(sequence.table.pages) for sequence in sequences)
        if columns.phase[index] == _PREFILL:
            columns.prompt_left[index] += sum(sequence.num_new - waits for sequence in sequences)

    def update_sound(self, reply: ActiveReply) -> None:
        """Write how much sound of a reply was made, sent and played, after any of that has changed."""
        index, columns, playback = reply.table_index, self.columns, reply.playback
        made_s = reply.num_samples / self._sample_rate
        columns.unvoiced_s[index] = max(0.0, reply.num_speech / self._codes_per_s - made_s)
        columns.sound_total_s[index] = made_s
        has_begun = playback.has_begun
        columns.has_sound[index] = has_begun
        columns.sound_end_s[index] = playback.dry_s if has_begun else 0.0

    def update_ready(self, ready: list[tuple[ActiveReply, int]]) -> None:
        """Write whose next chunk the codec can make; with each reply the number of its codes that wait."""
        columns, used = self.columns, self.columns.indices
        columns.chunks_ready[used] = 0
        columns.ready_s[used] = 0.0
        for reply, num_pending in ready:
            index = reply.table_index
            columns.chunks_ready[index] = 1
            num_codes = num_pending
            if reply.finish is None:  # codes behind the last complete chunk wait for the next
                num_codes -= reply.num_speech - self._ahead[index].last_border
            columns.ready_s[index] = max(num_codes, 0) / self._codes_per_s

    def _look_ahead(self, index: int, cursor: Cursor | FreeCursor, num_speech: int) -> None:
        """Write the tokens until the codec's next chunk, and the open or next reflection."""
        columns, ahead = self.columns, self._ahead.get(index)
        border = self._speech.next_border(num_speech)
        if border is None:
            border = num_speech

        # A new count where the cursor has entered another state or a chunk is complete.
        row, count = cursor.row, cursor.count
        if ahead is None or row < 0 or ahead.row != row or ahead.border != border:
            last = 0 if ahead is None else ahead.last_border
            if self._streams and (ahead is None or ahead.border != border):
                last = 0 if ahead is None else ahead.border
                columns.chunk_s[index] = (border - last) / self._codes_per_s
            spoken_left = spoken_until(cursor, border - num_speech)
            ahead = _Ahead(row, last, border, count, spoken_left, reflection_ahead(cursor))
            self._ahead[index] = ahead
            self._write_reflection(index, cursor, ahead.reflection)

        # Tokens emitted since then are off the count.
        is_spoken = cursor.kind is _SPEECH or cursor.kind is _TRANSCRIPT
        num_since = count - ahead.count if is_spoken else 0
        columns.spoken_left[index] = max(ahead.spoken_left - num_since, 0)
        if ahead.reflection is not None and ahead.reflection.is_open:
            columns.hidden_count[index] = count
            columns.hidden_cap[index] = cursor.limit

    def _write_reflection(
        self, index: int, cursor: Cursor | FreeCursor, reflection: OpenReflection | None
    ) -> None:
        """Write the open or next reflection, as far as it stays the same within a state."""
        columns = self.columns
        if reflection is None:
            columns.is_reflecting[index] = False
            columns.hidden_most[index] = 0
            return
        columns.is_reflecting[index] = reflection.is_open
        columns.hidden_most[index] = reflection.most
        columns.hidden_floor[index] = cursor.program.schedule.floor
        if not reflection.is_open:
            columns.hidden_count[index] = 0
            columns.hidden_cap[index] = reflection.most

    def _spoken_rate(self, program: Program) -> float:
        """Transcript and speech tokens a second of sound, by the schedule's cycle."""
        tokens = {"speech": 0, "transcript": 0}
        for segment in program.schedule.cycle:
            if segment.kind in tokens and segment.budget is not None:
                tokens[segment.kind] += segment.budget
        share = tokens["transcript"] / tokens["speech"] if tokens["speech"] else 0.0
        return self._codes_per_s * (1 + share)
