"""The replies that wait and those that run: how one begins, gives its pages to others, speaks and ends. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from innervoice.codec.audio import Resampler
from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.device_step import Emitted
from innervoice.model.pages import OutOfPages, PagePool, PageTable
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.model.text import TextTokenizer
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.event_builder import EventBuilder
from innervoice.runtime.overlap import Astray, Overlap, Told, follow
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import Phase
from innervoice.runtime.scheduler_view import SchedulerView
from innervoice.runtime.session_state import SessionState
from innervoice.runtime.sessions import Sessions
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot
from innervoice.schedule import Emission, make_cursor
from innervoice.telemetry.trace import Tracer
from innervoice.types import Event, FinishReason, OutOfCapacity, Pcm16, Samples
from innervoice_kernels.sampling.cursor_columns import Ending

Preempt = Literal["recompute", "swap"]
NO_NUMBERS = "the model's logits are not numbers: check the weights, or use a wider dtype"


class ReplyTable:
    """waiting: requests and their places, by reply id; active: replies that have begun; outbox: events that want a time.

    stepping: the rows of those whose tokens the device draws, None: the host draws for all.
    """

    def __init__(
        self,
        runner: ModelRunner,
        pool: PagePool,
        tokenizer: TextTokenizer,
        voice: SpeechOutput | None,
        tracer: Tracer,
        *,
        max_rows: int,
        max_model_len: int,
        share_prefixes: bool,
        max_waiting: int | None,
        preempt: Preempt,
        stepping: Overlap | None = None,
    ) -> None:
        self.tokenizer, self.max_rows, self.max_model_len = tokenizer, max_rows, max_model_len
        self.waiting: dict[str, tuple[Request, int]] = {}
        self.active: dict[str, ActiveReply] = {}
        self.outbox: list[Callable[[float], Event]] = []
        self.ledger = SchedulerView(voice)
        self.dialogues = Sessions(self)
        self.stepping = stepping
        self.num_preempted = 0
        self.trace = ReplyTrace(tracer, self.running)
        self._runner, self._pool, self._voice, self._tracer = runner, pool, voice, tracer
        self._share, self._max_waiting, self._preempt_by = share_prefixes, max_waiting, preempt
        self._codes_per_s = math.inf if voice is None else voice.codes_per_s

    @property
    def num_rows(self) -> int:
        """Dialogues, and single replies that run."""
        return len(self.dialogues) + sum(r.request.session_id is None for r in self.active.values())

    def submit(self, request: Request, now: float) -> SessionSnapshot | None:
        """Queue a request -> the history that a turn finds. Raises ValueError for a turn whose dialogue is busy, gone, or too

        long with it; OutOfCapacity.
        """
        dialogue = None if request.session_id is None else self.dialogues.idle(request.session_id)
        history = 0 if dialogue is None else len(dialogue.row.ids) - dialogue.draft
        self.check_length(history + len(request.prompt_ids))
        self.check_room()
        cached = pages = 0
        if dialogue is not None:
            dialogue.busy = request.reply_id
            dialogue.replies.add(request.reply_id)
            self.dialogues.end_draft(dialogue, request.prompt_ids)
            cached, pages = dialogue.row.num_cached, len(dialogue.row.table.pages)
        place = self.ledger.enter(
            request, now, num_tokens=history + len(request.prompt_ids), num_cached=cached, num_pages=pages
        )
        self.waiting[request.reply_id] = request, place
        if self.trace.enabled:
            self.trace.submitted(request, now)
        return None if dialogue is None else SessionSnapshot.of(dialogue.row, dialogue.paused, "", history)

    def check_room(self, num_coming: int = 0) -> None:
        """Raise OutOfCapacity when no more replies may wait, with so many that are on their way. Any thread may ask."""
        if self._max_waiting is None:
            return
        if len(self.waiting) + num_coming >= self._max_waiting + max(0, self.max_rows - len(self.active)):
            raise OutOfCapacity(
                f"{len(self.active)} replies run and {len(self.waiting)} wait, as many as may: try again, or load the model with "
                "a larger max_waiting",
                1.0,
            )

    def refuse(self, request: Request, error: str) -> None:
        """End a request that never got in."""
        running = self._make_running(request, -1, self.new_row())
        self.outbox.append(running.stamped(partial(running.log.done, "error", error)))

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled", error: str | None = None) -> None:
        """End a reply now; its pages are free and its Done is next. Unknown and ended replies are left alone."""
        if reply_id in self.waiting:
            request, place = self.waiting.pop(reply_id)
            running = self._make_running(request, place, self.new_row())
            running.error = error
            self.ledger.leave(place)
            self._leave(request)
            self.outbox.append(running.stamped(partial(running.log.done, reason, error)))
        if reply_id in self.active:
            self.settle()
            self.active[reply_id].error = error
            self.end(self.active[reply_id], reason)

    def set_blocked(self, reply_id: str, is_blocked: bool) -> None:
        """Whether a reply's reader is behind: such a reply takes no part in steps. Replies that are over are left alone."""
        if reply_id in self.active:
            self.ledger.jobs.is_blocked[self.active[reply_id].place] = is_blocked
        elif reply_id in self.waiting:
            self.ledger.jobs.is_blocked[self.waiting[reply_id][1]] = is_blocked

    def running(self, reply_id: str | None) -> ActiveReply | None:
        """A reply that runs, None for any other."""
        return self.active.get(reply_id or "")

    def last_words(self, now: float, error: str) -> list[Event]:
        """The core goes no further: a last event for every reply that is not over."""
        waiting = [
            self._make_running(request, place, self.new_row()) for request, place in self.waiting.values()
        ]
        return [
            running.stamped(partial(running.log.done, "error", error))(now)
            for running in [*self.active.values(), *waiting]
        ]

    def admit(self, place: int) -> None:
        """Give a row to a reply that waits, for the first time or again."""
        entry = self.ledger.at(place)
        if isinstance(entry, Request):
            del self.waiting[entry.reply_id]
            self._start(entry, place)
            return
        assert isinstance(entry, ActiveReply), "a listener has its row"
        row, saved = entry.row, entry.host_pages
        self._adopt(row)
        if saved is not None and saved.num_tokens > row.num_cached:
            try:
                row.table.grow(saved.num_tokens)
                self._runner.load_pages(row, saved)
            except OutOfPages:
                row.release()  # computed again instead
        entry.host_pages = None
        self.ledger.jobs.phase[place] = Phase.PREFILL
        self.ledger.update(entry)
        if self.trace.enabled:
            self.trace.admitted(entry, again=True)

    def preempt(self, place: int) -> None:
        """Take a reply's pages back; it waits for its turn again."""
        entry = self.ledger.at(place)
        if isinstance(entry, SessionState):
            self.dialogues.end_draft(entry)
            entry.row.release()
            return
        assert isinstance(entry, ActiveReply), "a reply without a row holds no pages"
        self._leave_device(entry)
        if self._preempt_by == "swap":
            entry.host_pages = self._runner.save_pages(entry.row)
        entry.row.release()
        self.ledger.jobs.phase[place] = Phase.WAITING
        self.ledger.update(entry)
        self.ledger.jobs.prompt_left[place] = entry.row.num_new
        self.num_preempted += 1

    def _start(self, request: Request, place: int) -> None:
        dialogue = None if request.session_id is None else self.dialogues.known(request.session_id)
        row = self.new_row() if dialogue is None else dialogue.row
        paused = None if dialogue is None else dialogue.paused
        if paused is not None and request.prompt_ids:  # a new turn instead of the rest of the reply
            if paused.cursor.is_done:
                row.drop_last()
            paused = None
        row.extend(request.prompt_ids[0 if dialogue is None else dialogue.draft :])
        self._adopt(row)
        running = self._make_running(request, place, row, paused)
        self.active[request.reply_id] = running
        self.ledger.start(running)
        if self._voice is not None:
            self._voice.open(request.reply_id)
        if dialogue is not None:
            dialogue.draft, dialogue.paused = 0, None
            self.dialogues.speaks(dialogue, running, self._codes_per_s)
        if paused is not None:
            running.resume(paused, self._voice)
            self._finish(running)
        self.emit_forced(running)
        self.ledger.jobs.phase[place] = Phase.PREFILL
        self.ledger.update(running)
        if self.trace.enabled:
            self.trace.admitted(running)

    def _adopt(self, row: Sequence) -> None:
        if self._share and not row.table.pages:
            row.num_cached = row.table.adopt(row.ids, row.page_keys)

    def _make_running(
        self, request: Request, place: int, row: Sequence, paused: PausedReply | None = None
    ) -> ActiveReply:
        sampling, program = request.sampling, request.program
        weight = program.schedule.reflection_weight
        number = row.begin_reply(math.log(weight)) if paused is None else len(row.weights) - 1
        own_rate = 1 if self._voice is None else self._voice.sample_rate
        rate = request.output_rate or own_rate
        state = None if paused is None else paused.cursor
        return ActiveReply(
            request=request,
            row=row,
            cursor=make_cursor(program, request.caps, ignore_eos=sampling.ignore_eos, state=state),
            log=EventBuilder(
                request.reply_id,
                self.tokenizer,
                num_prompt=len(row.ids) - (0 if paused is None else paused.num_tokens),
                num_cached=row.num_cached,
                sampling=sampling,
                speech_start=(program.vocabulary.speech or (0, 0))[0],
                rate=rate,
                fields=request.event_fields,
            ),
            number=number,
            place=place,
            resampler=None if rate == own_rate else Resampler(own_rate, rate),
        )

    def make_writable(self, row: Sequence, ahead: int = 0) -> bool:
        """Pages for all tokens that are fed, a page of its own for the first that will be written; False: there are none.

        ahead: tokens beside those that the row knows, fed already or to be.
        """
        try:
            first = row.num_cached + ahead
            moved = row.table.writable(first) if first < row.table.capacity else None
            if moved is not None:
                self._runner.copy_page(*moved)
            row.table.grow(row.end + ahead)
        except OutOfPages:
            return False
        return True

    def emit_forced(self, running: ActiveReply) -> None:
        """Emit what the schedule forces now."""
        while running.finish is None and running.cursor.forced is not None:
            self.take(running, running.cursor.emit_forced(), None)

    def take(self, running: ActiveReply, emission: Emission, logprob: float | None) -> None:
        """A token was emitted."""
        self.outbox.append(running.take(emission, logprob, self._voice))
        self._finish(running)

    def settle(self) -> bool:
        """Let every reply stand where the device has it: read all that is queued. False: nothing was."""
        return self.read_steps(0) is not None

    def read_steps(self, keep: int) -> Told | None:
        """Read what is queued but for the last `keep` steps -> what the last of them did; None: there was none."""
        last = None
        while self.stepping is not None and self.stepping.num_queued > keep:
            last, told = self.stepping.read()
            for running, emitted, cap in told:
                if (
                    running.device_row is not None
                ):  # else it is over, and what was drawn behind its end is dropped
                    self._hear(running, emitted, cap)
                    self.ledger.update(running)
        return last

    def grant(self, running: ActiveReply, cap: int) -> None:
        """Give a reply's open reflection, or its next, a cap."""
        running.grant(cap)
        if self._tracer.enabled:
            self.trace.granted(running, cap)

    def _hear(self, running: ActiveReply, told: Emitted | None, cap: int | None) -> None:
        """What the device drew for a reply becomes its token."""
        row = running.row
        try:
            if told is None or told.ending is Ending.WAITING:
                raise Astray(
                    "a step of this reply came to nothing on the device, without an end or a page: please report this"
                )
            if told.ending is Ending.REFUSED:
                raise FloatingPointError(NO_NUMBERS)
            if cap is not None:
                self.grant(running, cap)
            emission = follow(running, told)
        except (Astray, FloatingPointError) as error:
            running.error = str(error)
            self.stop(running, "error")
            return
        row.num_cached = len(row.ids)
        if self._share:
            row.table.publish(row.ids, row.page_keys, row.num_cached)
        self.take(running, emission, told.logprob)
        if running.finish is None and told.ending is not Ending.RUNNING:
            running.error = f"the device ended this reply ({told.ending.name}) where the host does not: please report this"
            self.stop(running, "error")

    def send(self, running: ActiveReply, pcm: Samples | Pcm16, now: float) -> Event:
        """A chunk of sound leaves: the listener's clock goes on from here."""
        event = running.stamped(partial(running.log.audio, pcm))(now)
        running.playback.send(now, len(pcm) / running.log.rate)
        if self.active.get(running.request.reply_id) is running:
            self.ledger.update_sound(running)
        return event

    def _finish(self, running: ActiveReply) -> None:
        if running.finish is None:
            running.finish_if_over(self.max_model_len, self._codes_per_s)
        if running.finish is None:
            return
        self._leave_device(running)
        if self._voice is not None:
            self._voice.finish(running.request.reply_id)
        if running.request.session_id is None:
            running.row.release()  # only its sound is still to be made

    def _leave_device(self, running: ActiveReply) -> None:
        if self.stepping is not None:
            self.stepping.leave(running)

    def time_out(self, now: float) -> None:
        """End those whose time is over."""
        for reply_id in [r.reply_id for r, _ in self.waiting.values() if now >= r.deadline_s]:
            self.cancel(reply_id, "timeout")
        late = [running for running in self.unfinished() if now >= running.request.deadline_s]
        if late:
            self.settle()
        for running in [running for running in late if running.finish is None]:
            self.stop(running, "timeout")
            self.ledger.update(running)

    def next_timeout(self) -> float:
        """When the first of them times out, +inf for never."""
        requests = [request for request, _ in self.waiting.values()] + [
            running.request for running in self.unfinished()
        ]
        return min((request.deadline_s for request in requests), default=math.inf)

    def stop(self, running: ActiveReply, reason: FinishReason) -> None:
        """Take no more tokens; what was spoken is still voiced."""
        running.finish = reason
        self._finish(running)

    def end(self, running: ActiveReply, reason: FinishReason) -> None:
        """The reply is over: free what it holds, and tell."""
        request, row = running.request, running.row
        self._leave_device(running)
        del self.active[request.reply_id]
        self.ledger.leave(running.place)
        if self._voice is not None:
            self._voice.close(request.reply_id)
        row.limit = None
        if request.session_id is None:
            row.release()
        elif running.cursor.is_done:
            row.drop_last()  # the next turn's template begins with the end of this one
        self._leave(request)
        self.outbox.append(running.stamped(partial(running.log.done, reason, running.error, running.granted)))
        self._tracer.counter("pages", available=self._pool.num_available, cached=self._pool.num_cached)

    def _leave(self, request: Request) -> None:
        if request.session_id is not None:
            self.dialogues.rest(self.dialogues.known(request.session_id))

    def unfinished(self) -> list[ActiveReply]:
        """Those that take tokens."""
        return [running for running in self.active.values() if running.finish is None]

    def new_row(self) -> Sequence:
        """An empty row."""
        return Sequence(PageTable(self._pool))

    def check_length(self, num_tokens: int) -> None:
        """Raise ValueError when history and prompt leave no room for a reply."""
        most = self.max_model_len
        if num_tokens >= most:
            raise ValueError(
                f"history and prompt have {num_tokens} tokens, {num_tokens - most + 1} more than the cache holds beside a reply: "
                f"load the model with max_model_len above {num_tokens}, or open a new session"
            )
