"""The codec's step: which replies' next chunks are made now, and what becomes of the samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from innervoice.codec.speech_codec import SpeechOutput, SpokenChunk
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import NOTHING, StepResult
from innervoice.runtime.faults import Faults
from innervoice.runtime.outbox import Outbox, PendingAudio
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.scheduler import LearnedCosts, SchedulerSettings, plan_voice
from innervoice.types import Samples

log = logging.getLogger("innervoice")


class SpeechStep:
    """Makes sound as the scheduler plans, and ends replies that have all of theirs.

    wake_s: when to plan again.
    """

    def __init__(
        self,
        table: ReplyTable,
        speech: SpeechOutput,
        completion: Completion,
        outbox: Outbox,
        faults: Faults,
        trace: ReplyTrace,
        costs: LearnedCosts,
        settings: SchedulerSettings,
    ) -> None:
        self._table = table
        self._speech = speech
        self._completion = completion
        self._outbox = outbox
        self._faults = faults
        self._trace = trace
        self._costs = costs
        self._settings = settings
        self.wake_s = math.inf

    def step(self, now: float, *, idle: bool) -> StepResult:
        """Make the sound that is wanted now. idle: the language model had nothing to do."""
        self.wake_s = math.inf
        table = self._table
        for reply_id in self._speech.ended():
            reply = table.get(reply_id)
            with self._faults.owning(reply):
                assert reply.finish is not None, "the speech output finished before the reply"
                self._completion.end(reply, reply.finish)

        # Which of the chunks that are ready are made now.
        ready = [(table.get(key), num_pending) for key, num_pending in self._speech.ready()]
        table.update_ready(ready)
        plan = plan_voice(table.columns, self._costs, self._settings, now, idle=idle)
        self.wake_s = plan.wake_s
        chosen = set(plan.indices.tolist())
        replies = [reply for reply, _ in ready if reply.table_index in chosen]
        if not replies:
            return NOTHING
        if self._trace.enabled:
            self._trace.chosen(replies, now)
        for reply_id, samples, is_last in self._chunks(replies):
            found = table.find(reply_id)
            if found is None:
                log.warning("the speech output made a chunk of %r, which is no reply of the step", reply_id)
                continue
            with self._faults.owning(found):
                self._send(found, samples, is_last, now)
        return StepResult(chunks=len(replies))

    def _chunks(self, replies: Sequence[ActiveReply]) -> Sequence[SpokenChunk]:
        """The codec's chunks of these replies, which all end when its step fails."""
        try:
            return self._speech.step([reply.reply_id for reply in replies])
        except torch.AcceleratorError:
            raise
        except Exception as error:
            for reply in replies:
                self._faults.fail(reply, error)
            return []

    def _send(self, reply: ActiveReply, samples: Samples, is_last: bool, now: float) -> None:
        """Send a chunk of a reply, which is over with its last one or when its codec broke."""
        reply_id = reply.reply_id
        if reply_id in self._speech.errors:
            if not is_last:  # a chunk of the step in which it broke: its last one follows
                return
            reply.error = self._speech.errors[reply_id]
            self._completion.end(reply, "error")
            return
        self._table.columns.served_s[reply.table_index] = now
        pcm = reply.sound(samples, is_last)
        if len(pcm):
            self._outbox.put(PendingAudio(reply, pcm))
        self._table.update_sound(reply)
        if is_last:
            assert reply.finish is not None, "the speech output finished before the reply"
            self._completion.end(reply, reply.finish)
