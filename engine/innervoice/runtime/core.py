"""The only loop: rows through the model, tokens through their schedules, speech through the voice. Reads no clock."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innervoice.codec.speech_codec import SpeechOutput, try_out
from innervoice.model.pages import PagePool
from innervoice.model.runner import ModelRunner, forward_apart
from innervoice.model.sequence import Sequence
from innervoice.model.text import TextTokenizer
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.overlap import Overlap, Told
from innervoice.runtime.replies import NO_NUMBERS, Preempt, ReplyTable
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    SchedulerSettings,
    StepPlan,
    plan_step,
    plan_voice,
)
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.telemetry.stats import Occupancy
from innervoice.telemetry.trace import Tracer
from innervoice.types import Event, FinishReason
from innervoice_kernels.sampling.sample import REFUSED, merge_spans, sample

_FORCED_MARGIN = 16  # forced tokens behind a prompt do not cost a step of their own
NO_LOGITS = torch.empty(0, 0)


@dataclass(frozen=True)
class Work:
    """What a call did: rows that drew a token, prompt tokens fed, chunks of sound made; all 0: nothing could be done.

    queued: rows of a step that a later call tells of. step_s: what rows and prompt_tokens took on the device, None: the call.
    """

    rows: int = 0
    prompt_tokens: int = 0
    chunks: int = 0
    queued: int = 0
    step_s: float | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nothing could be done."""
        return not (self.rows or self.prompt_tokens or self.chunks or self.queued)


class _Part(NamedTuple):
    """Who takes part in a step: replies that the host draws for, and the device; rows that are only fed; prompt tokens."""

    drawing: list[ActiveReply]
    stepped: list[ActiveReply]
    feeding: list[Sequence]
    num_fed: int


class Core:
    """Runs requests as the scheduler plans. Not thread-safe: one thread steps it.

    At most max_rows replies hold rows at once, beside as many dialogues. step_tokens and step_voice make events; drain hands them
    over stamped with the time they were ready. Whoever steps it tells it how long that took (`costs`), and when nothing could be
    done waits until `wake_s`. max_waiting: replies that may wait for a row, the next is refused. preempt: how a reply that gives
    its pages to others gets its keys and values back. stepping: draws on the device for whom it can; None: the host draws.
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
        share_prefixes: bool = True,
        scheduler: SchedulerSettings | None = None,
        max_waiting: int | None = None,
        preempt: Preempt = "recompute",
        stepping: Overlap | None = None,
    ) -> None:
        self.runner, self.pool, self.max_rows = runner, pool, max_rows
        self.settings = scheduler or SchedulerSettings(max_rows=max_rows, page_size=pool.page_size)
        self.costs = LearnedCosts()
        self.wake_s = math.inf
        self.replies = ReplyTable(
            runner,
            pool,
            tokenizer,
            voice,
            tracer,
            max_rows=max_rows,
            max_model_len=max_model_len,
            share_prefixes=share_prefixes,
            max_waiting=max_waiting,
            preempt=preempt,
            stepping=stepping,
        )
        self.stepping = stepping
        self.ledger, self.dialogues = self.replies.ledger, self.replies.dialogues
        self._voice, self._tracer, self._share = voice, tracer, share_prefixes
        self._did_step = False
        self._told: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether there is anything that is not over, not handed over, or not fed ahead."""
        replies = self.replies
        return bool(replies.active or replies.waiting or replies.outbox) or self.ledger.has_prompts_ahead

    @property
    def num_rows(self) -> int:
        """Dialogues, and single replies that run."""
        return self.replies.num_rows

    def submit(self, request: Request, now: float | None = None) -> SessionSnapshot | None:
        """Queue a request -> the history that a turn finds. Raises ValueError for a turn whose dialogue is busy, gone, or too

        long with it; OutOfCapacity.
        """
        return self.replies.submit(request, request.submitted_s if now is None else now)

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled", error: str | None = None) -> None:
        """End a reply now; its pages are free and its Done is next. Unknown and ended replies are left alone."""
        self.replies.cancel(reply_id, reason, error)

    def step_tokens(self, now: float) -> Work:
        """A step of the rows that the scheduler takes, and a drawn token for each whose prompt is through.

        What the device draws is queued, and read by the next call: it does not wait for the host.
        """
        self.replies.time_out(now)
        self._make_room()
        plan = self._plan(now)
        for place in plan.preempt:
            self.replies.preempt(place)
        for place in plan.admit:
            self.replies.admit(place)
        caps = self._grant(plan)
        begun = None if self.stepping is None else self.stepping.mark()
        part = self._take_part(plan, now)
        self.wake_s = min(plan.wake_s, self.replies.next_timeout())
        drawing, logits = self._forward(part)
        queued = self._queue(part, caps, begun)
        if drawing:
            with self._tracer.span("sample", rows=len(drawing)):
                self._draw(drawing, logits, d=0)
        self._write_down(part)
        told = self.replies.read_steps(keep=1 if queued else 0) or Told()
        own = (0, 0) if queued and not part.drawing else (len(part.drawing), part.num_fed)
        work = Work(
            told.rows + own[0], told.prompt_tokens + own[1], 0, queued, None if own[0] else told.took_s
        )
        self._did_step = not work.is_nothing
        return work

    def _plan(self, now: float) -> StepPlan:
        jobs, costs, settings = self.ledger.jobs, self.costs, self.settings
        plan = plan_step(jobs, costs, settings, now, self.pool.num_available)
        if (
            plan.preempt and self.replies.settle()
        ):  # pages are taken from nobody who is not what he was thought to be
            plan = plan_step(jobs, costs, settings, now, self.pool.num_available)
        if self._tracer.enabled:
            self.replies.trace.planned(plan, self.ledger, settings, self.pool.num_available, now)
        return plan

    def _forward(self, part: _Part) -> tuple[list[ActiveReply], Tensor]:
        """Feed what the host feeds -> those of `drawing` that went through, and their logits."""
        drawing, feeding = part.drawing, part.feeding
        rows = [running.row for running in drawing] + feeding
        if not rows:
            return [], NO_LOGITS
        offered = merge_spans({span for running in drawing for span in running.cursor.offered})
        logits, failed = forward_apart(self.runner, rows, self.replies.new_row, offered)
        for row in rows:
            row.limit = None
        for running in [r for r in drawing if id(r.row) in failed]:
            running.error = f"a step of this reply failed: {failed[id(running.row)]}"
            self.replies.stop(running, "error")
        self._fail_feeding(feeding, failed)
        if self._share:
            for row in [row for row in rows if id(row) not in failed]:
                row.table.publish(row.ids, row.page_keys, row.num_cached)
        alive = [i for i, running in enumerate(drawing) if id(running.row) not in failed]
        if not alive:
            return [], NO_LOGITS
        return [drawing[i] for i in alive], logits if len(alive) == len(logits) else logits[alive]

    def _queue(self, part: _Part, caps: Mapping[int, int], begun: Any) -> int:
        """Queue the step of those that the device draws for, behind what was fed -> rows of it."""
        if self.stepping is None or not (part.stepped or part.feeding):
            return 0
        stepped = [running for running in part.stepped if running.finish is None]
        self.stepping.queue(stepped, caps, 0 if part.drawing else part.num_fed, begun)
        return len(stepped) + len(part.feeding)

    def step_voice(self, now: float) -> Work:
        """Make the sound that the scheduler wants made now, and end the replies that are complete."""
        if self._voice is None:
            for running in [r for r in self.replies.active.values() if r.finish is not None]:
                self.replies.end(running, running.finish or "stop")
            return Work()
        jobs = self.ledger.jobs
        ready = self._voice.ready()
        self.ledger.update_ready([(self.replies.active[key], pending) for key, pending in ready])
        plan = plan_voice(jobs, self.costs, self.settings, now, idle=not self._did_step)
        self.wake_s = min(self.wake_s, plan.wake_s)
        chosen = set(plan.places.tolist())
        keys = [key for key, _ in ready if self.replies.active[key].place in chosen]
        if not keys:
            return Work()
        if self._tracer.enabled:
            self.replies.trace.chosen([self.replies.active[key] for key in keys], now)
        for reply_id, samples, is_last in self._voice.step(keys):
            running = self.replies.active[reply_id]
            if reply_id in self._voice.errors:
                running.error = self._voice.errors[reply_id]
                self.replies.end(running, "error")
                continue
            jobs.served_s[running.place] = now
            pcm = running.sound(samples, is_last)
            if len(pcm):
                self.replies.outbox.append(partial(self.replies.send, running, pcm))
            self.ledger.update_sound(running)
            if is_last:
                assert running.finish is not None, "the voice finished before the reply"
                self.replies.end(running, running.finish)
        return Work(chunks=len(keys))

    @property
    def can_stream(self) -> bool:
        """Whether sound comes while a reply is made."""
        return self._voice is not None and self._voice.next_border(0) is not None

    def try_voice(self, num: int, key: str) -> None:
        """Make first chunks for so many replies that mean nothing, and forget them."""
        voice = self._voice
        assert voice is not None, "there is no voice"
        try_out(voice, num, key)

    def occupancy(self) -> Occupancy:
        """Who holds what."""
        replies, pool, voice = self.replies, self.pool, self._voice
        return Occupancy(
            running=len(replies.active),
            waiting=len(replies.waiting),
            sessions=len(self.dialogues),
            pages=pool.num_pages,
            pages_free=pool.num_available,
            pages_cached=pool.num_cached,
            slots=0 if voice is None else self.max_rows,
            slots_used=0 if voice is None else voice.num_open,
        )

    def incidents(self) -> dict[str, int]:
        """What happened since the last call that is worth a number."""
        replies, dialogues = self.replies, self.dialogues
        totals = {
            "preempted": replies.num_preempted,
            "late_ack": dialogues.num_late_acks,
            "fed_ahead": dialogues.num_draft_kept,
        }
        new = {what: total - self._told.get(what, 0) for what, total in totals.items()}
        self._told = totals
        return {what: number for what, number in new.items() if number}

    def drain(self, now: float) -> list[Event]:
        """Events made since the last call, in order, ready at `now`."""
        made, self.replies.outbox = self.replies.outbox, []
        if self._tracer.enabled:
            return [self._traced(make(now), now) for make in made]
        return [make(now) for make in made]

    def check_integrity(self) -> None:
        """Raise AssertionError, or what the pool raises, where the books disagree: for tests."""
        self.pool.check_integrity()
        if self.stepping is not None:
            self.stepping.check_integrity()
        assert len(self.ledger) == len(self.ledger.jobs), "places without owners"
        drafts = sum(d.draft_place is not None for d in self.dialogues)
        assert len(self.ledger) == len(self.replies.waiting) + len(self.replies.active) + drafts, (
            "replies without places"
        )
        if self._voice is not None:
            assert self._voice.num_open == len(self.replies.active), "slots without replies"
        rows = [running.row for running in self.replies.active.values()] + [
            dialogue.row for dialogue in self.dialogues
        ]
        held = {page for row in rows for page in row.table.pages}
        assert self.pool.num_pages - self.pool.num_available == len(held), "pages without rows"

    def _take_part(self, plan: StepPlan, now: float) -> _Part:
        """Who takes part in the step; every row with its pages and its limit."""
        drawing: list[ActiveReply] = []
        stepped: list[ActiveReply] = []
        feeding: list[Sequence] = []
        num_fed = 0
        jobs = self.ledger.jobs
        for place, num in plan.prefill:
            entry = self.ledger.at(place)
            assert not isinstance(entry, Request), "a reply without a row is not fed"
            if isinstance(entry, ActiveReply) and (entry.finish is not None or entry.row.num_new == 0):
                continue
            row, left = entry.row, entry.row.num_new
            more = (
                _FORCED_MARGIN if isinstance(entry, ActiveReply) and num < self.settings.prefill_chunk else 0
            )
            is_whole = left - num <= more
            row.limit = None if is_whole else row.num_cached + num
            if not self.replies.make_writable(row):
                row.limit = None
                continue
            num_fed += row.num_new
            jobs.served_s[place] = now
            if isinstance(entry, ActiveReply) and is_whole:
                jobs.phase[place], jobs.prompt_left[place] = Phase.DECODE, 0
                if self.stepping is None or not self.stepping.begin(entry):
                    drawing.append(entry)
                    continue
                stepped.append(entry)  # the last token is fed by the device's step
                if row.num_new > 1:
                    row.limit = len(row.ids) - 1
                    feeding.append(row)
            else:
                feeding.append(row)
        for place in plan.decode.tolist():
            running = self.ledger.at(place)
            assert isinstance(running, ActiveReply), "only a reply that runs draws"
            on_device = self.stepping is not None and running.device_row is not None
            if running.finish is not None or (self.stepping is not None and self.stepping.is_spent(running)):
                continue
            if not self.replies.make_writable(running.row, running.in_flight):
                continue
            jobs.served_s[place] = now
            if on_device:
                jobs.pages[place] = len(running.row.table.pages)
            (stepped if on_device else drawing).append(running)
        if not (drawing or stepped or feeding) and (plan.prefill or len(plan.decode)) and not self._is_ahead:
            self._give_up(plan)
        return _Part(drawing, stepped, feeding, num_fed)

    def _give_up(self, plan: StepPlan) -> None:
        """Nobody got its pages although nothing is left to take back: end the reply that came last."""
        places = [place for place, _ in plan.prefill] + plan.decode.tolist()
        runs = [
            r
            for r in (self.ledger.at(place) for place in places)
            if isinstance(r, ActiveReply) and r.finish is None
        ]
        if runs:
            last = max(runs, key=lambda r: int(self.ledger.jobs.order[r.place]))
            last.error = (
                f"the cache of {self.pool.num_pages} pages is full: load the model with more max_sessions"
            )
            self.replies.stop(last, "error")
            self.ledger.update(last)

    @property
    def _is_ahead(self) -> bool:
        """Whether a step is queued whose tokens the host does not know."""
        return self.stepping is not None and self.stepping.num_queued > 0

    def _write_down(self, part: _Part) -> None:
        for running in part.drawing:
            self.ledger.update(running)
        fed = {id(row) for row in part.feeding}
        if not fed:
            return
        for running in self.replies.active.values():
            if id(running.row) in fed:
                self.ledger.update(running)
        for dialogue in self.dialogues:
            if id(dialogue.row) in fed and dialogue.draft_place is not None:
                self.ledger.update_listener(dialogue)

    def _fail_feeding(self, feeding: abc.Sequence[Sequence], failed: dict[int, Exception]) -> None:
        broken = {id(row) for row in feeding if id(row) in failed}
        if not broken:
            return
        for running in [r for r in self.replies.active.values() if id(r.row) in broken]:
            running.error = f"the prompt of this reply failed: {failed[id(running.row)]}"
            self.replies.stop(running, "error")
            self.ledger.update(running)
        for dialogue in [d for d in self.dialogues if id(d.row) in broken]:
            self.dialogues.end_draft(dialogue)

    def _grant(self, plan: StepPlan) -> dict[int, int]:
        """Tell the host's cursors what they may reflect -> what the device's are told with their next step, by place."""
        caps: dict[int, int] = {}
        for place, cap in zip(plan.cap_places.tolist(), plan.caps.tolist(), strict=True):
            entry = self.ledger.at(place)
            if isinstance(entry, ActiveReply) and entry.request.is_live and entry.finish is None:
                if entry.device_row is not None:
                    caps[place] = cap
                    continue
                self.replies.grant(entry, cap)
                if entry.cursor.forced is not None:
                    self.replies.emit_forced(entry)
                    self.ledger.update(entry)
        return caps

    def _make_room(self) -> None:
        """Pages of dialogues that nobody is in are taken back when those that run are about to need them."""
        jobs = self.ledger.jobs
        places = jobs.places
        waiting = places[jobs.phase[places] == Phase.WAITING]
        first = waiting[jobs.order[waiting].argmin()] if len(waiting) else None
        size = self.settings.page_size
        need = 2 * (len(places) - len(waiting)) + -(-self.settings.prefill_chunk // size)
        if first is not None:
            need += int(jobs.context[first]) // size + 2 - int(jobs.pages[first])
        while self.pool.num_available < min(need, self.pool.num_pages) and self.dialogues.release_oldest():
            pass

    def _draw(self, active: abc.Sequence[ActiveReply], logits: Tensor, *, d: int) -> None:
        ids, logprobs = sample(logits, [running.draw(d) for running in active])
        again: list[int] = []
        for index, (running, token, logprob) in enumerate(
            zip(active, ids.tolist(), logprobs.tolist(), strict=True)
        ):
            if token == REFUSED:
                running.error = NO_NUMBERS
                self.replies.stop(running, "error")
                continue
            emission = running.cursor.draw(token)
            if emission is not None:
                self.replies.take(running, emission, logprob)
            self.replies.emit_forced(running)
            # A discarded draw is drawn again, unless a forced id has taken the place of this token.
            if emission is None and running.finish is None and running.row.num_new == 0:
                again.append(index)
        if again:
            assert d == 0, "a token takes at most one discarded draw"
            self._draw([active[i] for i in again], logits[again], d=1)

    def _traced(self, event: Event, now: float) -> Event:
        self.replies.trace.told(event, now)
        return event
