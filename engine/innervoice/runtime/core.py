"""The loop: plan a step, feed and draw, emit tokens, make sound. Reads no clock."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.pages import PagePool
from innervoice.model.runner import ModelRunner
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.admission import Admission
from innervoice.runtime.batching import BatchBuilder
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import Decoder, StepResult
from innervoice.runtime.faults import Faults
from innervoice.runtime.feeding import FeedStep
from innervoice.runtime.outbox import Outbox
from innervoice.runtime.probing import Probing
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.scheduler import LearnedCosts, SchedulerSettings, StepPlan, plan_step
from innervoice.runtime.scoring import Scoring
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.sessions import Sessions
from innervoice.runtime.speech_step import SpeechStep
from innervoice.telemetry.stats import Occupancy


class Core:
    """Runs requests as the scheduler plans. Not thread-safe: one thread steps it. Made by `make_core`.

    `step_tokens` and `step_speech` make events; `drain` stamps them with the time and hands them over. The
    caller passes the time into each call, observes what steps took in `costs`, and waits until `wake_s` when
    nothing could be done.
    """

    def __init__(
        self,
        *,
        runner: ModelRunner,
        pool: PagePool,
        pages: SequencePages,
        speech: SpeechOutput,
        table: ReplyTable,
        registry: SessionRegistry,
        sessions: Sessions,
        decoder: Decoder,
        admission: Admission,
        completion: Completion,
        batches: BatchBuilder,
        speech_step: SpeechStep,
        feeding: FeedStep,
        probing: Probing,
        scoring: Scoring,
        outbox: Outbox,
        faults: Faults,
        trace: ReplyTrace,
        costs: LearnedCosts,
        settings: SchedulerSettings,
        max_rows: int,
        max_model_len: int,
    ) -> None:
        self.runner = runner
        self.pool = pool
        self.pages = pages
        self.speech = speech
        self.sessions = sessions
        self.decoder = decoder
        self.costs = costs
        self.settings = settings
        self.max_rows = max_rows
        self.max_model_len = max_model_len
        self.wake_s = math.inf
        self.table = table
        self.registry = registry
        self.admission = admission
        self._completion = completion
        self._batches = batches
        self._speech_step = speech_step
        self._feeding = feeding
        self.probing = probing
        self._scoring = scoring
        self._outbox = outbox
        self._faults = faults
        self.trace = trace
        self._is_idle = True
        self._counted: dict[str, int] = {}
        # Requests and events have owners of their own; the worker finds them here.
        self.submit = admission.submit
        self.check_room = admission.check_room
        self.refuse = completion.refuse
        self.cancel = completion.cancel
        self.set_blocked = table.set_blocked
        self.last_events = completion.last_events
        self.drain = outbox.drain

    @property
    def has_work(self) -> bool:
        """Whether any reply is not over, any event not handed over, or any prompt not prefetched."""
        table = self.table
        return bool(table.num_active or table.num_waiting or len(self._outbox)) or table.has_prompts_ahead

    @property
    def num_rows(self) -> int:
        """Rows in use: by sessions, and by single replies in progress, one for each context."""
        return self.sessions.num_rows

    def step_tokens(self, now: float) -> StepResult:
        """Draw a token in each row that the scheduler takes, and feed prompts.

        Where steps overlap, the device's draws are queued, and read by the next call.
        """
        # Make room for the replies that should run.
        self._completion.time_out(now)
        self._feeding.step(now)
        self.admission.make_room(self.settings, self.pool)
        plan = self._plan(now)
        for table_index in plan.preempt:
            self._preempt(table_index)
        for table_index in plan.admit:
            self._admit(table_index)

        # Step them.
        self._grant_caps(plan)
        batch = self._batches.build(plan, now)
        self.wake_s = min(plan.wake_s, self.table.next_deadline(), self._feeding.wake_s)
        result = self.decoder.step(batch)
        if num_scored := self._scoring.step():
            result = replace(result, prompt_tokens=result.prompt_tokens + num_scored, step_s=None)
        self._completion.end_failed()
        self._is_idle = result.is_nothing
        return result

    def step_speech(self, now: float) -> StepResult:
        """Make the sound that the scheduler wants made now, and end the replies that are complete."""
        self._completion.end_failed()  # whose events could not be made
        result = self._speech_step.step(now, idle=self._is_idle)
        self._completion.end_failed()
        self.wake_s = min(self.wake_s, self._speech_step.wake_s)
        return result

    def _preempt(self, table_index: int) -> None:
        entry = self.table.at(table_index)
        if not isinstance(entry, ActiveReply):
            self.admission.preempt(table_index)
            return
        with self._faults.owning(entry):
            self.admission.preempt(table_index)

    def _admit(self, table_index: int) -> None:
        """Admit a request or a preempted reply; one that cannot begin ends."""
        entry = self.table.at(table_index)
        try:
            self.admission.admit(table_index)
        except torch.AcceleratorError:
            raise
        except BaseException as error:
            self._completion.abandon(entry, table_index, error)

    def _plan(self, now: float) -> StepPlan:
        columns, costs, settings = self.table.columns, self.costs, self.settings
        plan = plan_step(columns, costs, settings, now, self.pool.num_available)
        # Pages are taken from a reply by its state of now, not by that of a step ago.
        if plan.preempt and self.decoder.settle():
            plan = plan_step(columns, costs, settings, now, self.pool.num_available)
        if self.trace.enabled:
            self.trace.planned(plan, self.table, settings, self.pool.num_available, now)
        return plan

    def _grant_caps(self, plan: StepPlan) -> None:
        """Give the live replies their caps of hidden tokens."""
        for table_index, cap in zip(plan.cap_indices.tolist(), plan.caps.tolist(), strict=True):
            reply = self.table.owner(table_index)
            if isinstance(reply, ActiveReply) and reply.request.is_live and reply.finish is None:
                self.decoder.grant(reply, cap)

    def occupancy(self) -> Occupancy:
        """Numbers of replies, sessions, pages and slots in use."""
        table, pool, speech = self.table, self.pool, self.speech
        return Occupancy(
            running=table.num_active,
            waiting=table.num_waiting,
            sessions=len(self.registry),
            pages=pool.num_pages,
            pages_free=pool.num_available,
            pages_cached=pool.num_cached,
            slots=speech.num_slots,
            slots_used=speech.num_open,
        )

    def incidents(self) -> dict[str, int]:
        """Events since the last call that telemetry counts, by name; without those that did not happen."""
        totals = {
            "preempted": self.admission.num_preempted,
            "late_ack": self.sessions.num_late_acks,
            "fed_ahead": self.registry.num_prefetch_kept,
        }
        new = {name: total - self._counted.get(name, 0) for name, total in totals.items()}
        self._counted = totals
        return {name: number for name, number in new.items() if number}

    def check_integrity(self) -> None:
        """Raise AssertionError, or what the pool raises, where the books disagree: for tests."""
        self.pool.check_integrity()
        self.decoder.check_integrity()
        sessions = list(self.registry)
        self.table.check_integrity(sum(session.table_index is not None for session in sessions))
        num_open = self.speech.num_open
        assert self.speech.num_slots == 0 or num_open == self.table.num_active, "slots without replies"
        sequences = [sequence for reply in self.table.active for sequence in reply.sequences]
        sequences += [session.sequence for session in sessions]
        held = {page for sequence in sequences for page in sequence.table.pages}
        assert self.pool.num_pages - self.pool.num_available == len(held), "pages without sequences"
