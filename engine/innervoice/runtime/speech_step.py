"""The codec's step: which replies' next chunks are made now, and what becomes of the samples.

On a GPU a step is launched, and collected by a later call: decode steps are queued and read while the device works at it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from innervoice.codec.speech_codec import LaunchingOutput, SpeechCall, SpeechOutput, SpokenChunk
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


@dataclass(frozen=True)
class _Launched:
    """A step that the device works at, and the replies that it makes chunks of."""

    call: SpeechCall
    replies: list[ActiveReply]


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
        self._launched: _Launched | None = None
        self.wake_s = math.inf

    def step(self, now: float, *, idle: bool) -> StepResult:
        """Make the sound that is wanted now. idle: the language model had nothing to do.

        A launched step is collected before the next one is planned; only who is idle waits for it.
        """
        self.wake_s = math.inf
        table = self._table
        for reply_id in self._speech.ended():
            reply = table.get(reply_id)
            with self._faults.owning(reply):
                assert reply.finish is not None, "the speech output finished before the reply"
                self._completion.end(reply, reply.finish)

        # What was launched is collected, once it is there.
        collected, launched = NOTHING, self._launched
        if launched is not None:
            if not (idle or launched.call.is_done()):
                return NOTHING
            self._launched = None
            self._send_all(self._chunks(launched.replies, launched.call.chunks), now)
            collected = StepResult(chunks=len(launched.replies), step_s=launched.call.took_s())

        # Which of the chunks that are ready are made now.
        ready = [(table.get(key), num_pending) for key, num_pending in self._speech.ready()]
        table.update_ready(ready)
        plan = plan_voice(table.columns, self._costs, self._settings, now, idle=idle)
        self.wake_s = plan.wake_s
        chosen = set(plan.indices.tolist())
        replies = [reply for reply, _ in ready if reply.table_index in chosen]
        if not replies:
            return collected
        if self._trace.enabled:
            self._trace.chosen(replies, now)
        keys, speech = [reply.reply_id for reply in replies], self._speech
        if not isinstance(speech, LaunchingOutput):
            self._send_all(self._chunks(replies, lambda: speech.step(keys)), now)
            return StepResult(chunks=len(replies))
        self._launch(speech, replies)
        return replace(collected, queued=len(replies))

    def _launch(self, speech: LaunchingOutput, replies: list[ActiveReply]) -> None:
        """Begin a step of these replies, which all end when it cannot begin."""

        def launch() -> Sequence[SpokenChunk]:
            self._launched = _Launched(speech.launch([reply.reply_id for reply in replies]), replies)
            return []

        self._chunks(replies, launch)

    def _chunks(
        self, replies: Sequence[ActiveReply], make: Callable[[], Sequence[SpokenChunk]]
    ) -> Sequence[SpokenChunk]:
        """What the codec makes of these replies, which all end when that fails; those that are over stay so."""
        try:
            return make()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            for reply in replies:
                if self._table.find(reply.reply_id) is reply:
                    self._faults.fail(reply, error)
            return []

    def _send_all(self, chunks: Sequence[SpokenChunk], now: float) -> None:
        for reply_id, samples, is_last in chunks:
            found = self._table.find(reply_id)
            if found is None:
                log.warning("the speech output made a chunk of %r, which is no reply of the step", reply_id)
                continue
            with self._faults.owning(found):
                self._send(found, samples, is_last, now)

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
