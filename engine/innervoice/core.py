"""The only loop: rows through the model, tokens through their schedules, speech through the voice. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from innervoice.batch import Row
from innervoice.blocks import PagePool, PageTable
from innervoice.codec.audio import Resampler
from innervoice.dialogue import Dialogue, Export, Paused
from innervoice.errors import OutOfCapacity
from innervoice.reply_log import ReplyLog
from innervoice.runner import Runner
from innervoice.running import Request, Running
from innervoice.schedule import make_cursor
from innervoice.text import TextTokenizer
from innervoice.trace import Tracer
from innervoice.types import Event, FinishReason
from innervoice.voice import Voice
from innervoice_kernels.sample import REFUSED, sample


class Core:
    """Runs requests, all of those admitted in every step, the others waiting in order. Not thread-safe: one thread steps it.

    A row is a dialogue or a single reply; at most max_rows hold pages at once. step_tokens and step_voice make events; drain
    hands them over stamped with the time they were ready.
    """

    def __init__(
        self,
        runner: Runner,
        pool: PagePool,
        tokenizer: TextTokenizer,
        voice: Voice | None,
        tracer: Tracer,
        *,
        max_rows: int,
        max_model_len: int,
        share_prefixes: bool = True,
    ) -> None:
        self.runner, self.pool = runner, pool
        self.max_rows, self.max_model_len = max_rows, max_model_len
        self._tokenizer, self._voice, self._tracer = tokenizer, voice, tracer
        self._share = share_prefixes
        self._codes_per_s = math.inf if voice is None else voice.codes_per_s
        self._waiting: list[Request] = []
        self._running: dict[str, Running] = {}
        self._dialogues: dict[str, Dialogue] = {}
        self._outbox: list[Callable[[float], Event]] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._outbox)

    @property
    def num_rows(self) -> int:
        """Dialogues, and single replies that run."""
        return len(self._dialogues) + sum(r.request.session_id is None for r in self._running.values())

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ValueError for a turn whose dialogue is busy, gone, or too long with it."""
        if request.session_id is not None:
            dialogue = self._idle(request.session_id)
            self._check_length(len(dialogue.row.ids) + len(request.prompt_ids))
            dialogue.busy = request.reply_id
        self._waiting.append(request)

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled") -> None:
        """End a reply now; its pages are free and its Done is next. Unknown and ended replies are left alone."""
        for request in [r for r in self._waiting if r.reply_id == reply_id]:
            self._waiting.remove(request)
            running = self._make_running(request, self._new_row())
            self._leave(request)
            self._outbox.append(running.stamped(partial(running.log.done, reason, None)))
        if reply_id in self._running:
            self._end(self._running[reply_id], reason)

    def open_session(self, session_id: str, export: Export | None = None) -> None:
        """A new dialogue, empty or as exported. Raises OutOfCapacity with the numbers, ValueError when it is too long."""
        if self.num_rows >= self.max_rows:
            raise OutOfCapacity(
                f"all {self.max_rows} sessions are in use: close one, or load the model with more max_sessions", 1.0
            )
        row = self._new_row()
        if export is not None:
            self._check_length(len(export.ids))
            export.fill(row)
        self._dialogues[session_id] = Dialogue(row, None if export is None else export.paused)

    def fork_session(self, session_id: str, new_id: str) -> None:
        """A second dialogue that shares the pages of the first; a running reply is paused in it. Raises OutOfCapacity."""
        dialogue = self._known(session_id)
        self.open_session(new_id)
        self._dialogues[new_id] = Dialogue(dialogue.row.fork(), self._paused(dialogue))

    def export_session(self, session_id: str, model: str) -> Export:
        """What restores the dialogue; a running reply is paused in it."""
        dialogue = self._known(session_id)
        return Export.of(dialogue.row, self._paused(dialogue), model)

    def session_state(self, session_id: str) -> tuple[int, Paused | None]:
        """Tokens of its history, and the reply that a fork or a restore left unfinished. Raises ValueError while it replies."""
        dialogue = self._idle(session_id)
        return len(dialogue.row.ids), dialogue.paused

    def close_session(self, session_id: str) -> None:
        """End its reply and free its pages. Raises ValueError for a dialogue that is not there."""
        dialogue = self._known(session_id)
        if dialogue.busy is not None:
            self.cancel(dialogue.busy)
        del self._dialogues[session_id]
        dialogue.row.table.release()

    def step_tokens(self, now: float) -> None:
        """One forward pass over all running rows, and one drawn token for each, with the forced ones behind it."""
        self._time_out(now)
        self._admit()
        for running in self._unfinished():
            self._emit_forced(running)
        active = self._unfinished()
        if not active:
            return
        for running in active:
            self._make_writable(running.row)
        logits = self.runner.forward([running.row for running in active])
        if self._share:
            for running in active:
                running.row.table.publish(running.row.ids, running.row.page_keys, running.row.num_cached)
        with self._tracer.span("sample", rows=len(active)):
            self._draw(active, logits, d=0)

    def step_voice(self) -> None:
        """Turn the speech tokens of every reply that has a chunk ready into sound, and end the replies that are complete."""
        if self._voice is None:
            for running in [r for r in self._running.values() if r.finish is not None]:
                self._end(running, running.finish or "stop")
            return
        for reply_id, samples, is_last in self._voice.step():
            running = self._running[reply_id]
            if reply_id in self._voice.errors:
                running.error = self._voice.errors[reply_id]
                self._end(running, "error")
                continue
            pcm = running.sound(samples, is_last)
            if len(pcm):
                self._outbox.append(running.stamped(partial(running.log.audio, pcm)))
            if is_last:
                assert running.finish is not None, "the voice finished before the reply"
                self._end(running, running.finish)

    def drain(self, now: float) -> list[Event]:
        """Events made since the last call, in order, ready at `now`."""
        made, self._outbox = self._outbox, []
        return [make(now) for make in made]

    def _admit(self) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            if request.session_id is None and self.num_rows >= self.max_rows:
                self._waiting.append(request)
                continue
            dialogue = None if request.session_id is None else self._dialogues[request.session_id]
            self._start(request, dialogue)

    def _start(self, request: Request, dialogue: Dialogue | None) -> None:
        row = self._new_row() if dialogue is None else dialogue.row
        paused = None if dialogue is None else dialogue.paused
        if paused is not None and request.prompt_ids:  # a new turn instead of the rest of the reply
            if paused.cursor["is_done"]:
                row.drop_last()
            paused = None
        row.extend(request.prompt_ids)
        if self._share and not row.table.pages:
            row.num_cached = row.table.adopt(row.ids, row.page_keys)
        running = self._make_running(request, row, paused)
        self._running[request.reply_id] = running
        if self._voice is not None:
            self._voice.open(request.reply_id)
        if dialogue is not None:
            dialogue.paused = None
        if paused is not None:
            running.resume(paused, self._voice)
            self._finish(running)
        self._tracer.instant("admit", reply=request.reply_id, prompt=len(row.ids), cached=row.num_cached)

    def _make_running(self, request: Request, row: Row, paused: Paused | None = None) -> Running:
        sampling, program = request.sampling, request.program
        weight = program.schedule.reflection_weight
        number = row.begin_reply(math.log(weight)) if paused is None else len(row.weights) - 1
        own_rate = 1 if self._voice is None else self._voice.sample_rate
        rate = request.output_rate or own_rate
        state = None if paused is None else paused.cursor
        return Running(
            request=request,
            row=row,
            cursor=make_cursor(program, request.caps, ignore_eos=sampling.ignore_eos, state=state),
            log=ReplyLog(
                request.reply_id,
                self._tokenizer,
                num_prompt=len(row.ids) - (0 if paused is None else paused.num_tokens),
                num_cached=row.num_cached,
                sampling=sampling,
                speech_start=(program.vocabulary.speech or (0, 0))[0],
                rate=rate,
            ),
            number=number,
            resampler=None if rate == own_rate else Resampler(own_rate, rate),
        )

    def _make_writable(self, row: Row) -> None:
        """Pages for all tokens, and a page of its own for the first that will be written."""
        moved = row.table.writable(row.num_cached) if row.num_cached < row.table.capacity else None
        if moved is not None:
            self.runner.copy_page(*moved)
        row.table.grow(len(row.ids))

    def _draw(self, active: Sequence[Running], logits: Tensor, *, d: int) -> None:
        ids, logprobs = sample(logits, [running.draw(d) for running in active])
        again: list[int] = []
        for index, (running, token, logprob) in enumerate(zip(active, ids.tolist(), logprobs.tolist(), strict=True)):
            if token == REFUSED:
                running.error = "the model's logits are not numbers: check the weights, or use a wider dtype"
                self._stop(running, "error")
                continue
            emission = running.cursor.draw(token)
            if emission is not None:
                self._outbox.append(running.take(emission, logprob, self._voice))
                self._finish(running)
            self._emit_forced(running)
            # A discarded draw is drawn again, unless a forced id has taken the place of this token.
            if emission is None and running.finish is None and running.row.num_new == 0:
                again.append(index)
        if again:
            assert d == 0, "a token takes at most one discarded draw"
            self._draw([active[i] for i in again], logits[again], d=1)

    def _emit_forced(self, running: Running) -> None:
        while running.finish is None and running.cursor.forced is not None:
            self._outbox.append(running.take(running.cursor.emit_forced(), None, self._voice))
            self._finish(running)

    def _finish(self, running: Running) -> None:
        if running.finish is None:
            running.finish_if_over(self.max_model_len, self._codes_per_s)
        if running.finish is not None and self._voice is not None:
            self._voice.finish(running.request.reply_id)

    def _time_out(self, now: float) -> None:
        for reply_id in [r.reply_id for r in self._waiting if now >= r.deadline_s]:
            self.cancel(reply_id, "timeout")
        for running in self._unfinished():
            if now >= running.request.deadline_s:
                self._stop(running, "timeout")

    def _stop(self, running: Running, reason: FinishReason) -> None:
        """Take no more tokens; what was spoken is still voiced."""
        running.finish = reason
        self._finish(running)

    def _end(self, running: Running, reason: FinishReason) -> None:
        request, row = running.request, running.row
        del self._running[request.reply_id]
        if self._voice is not None:
            self._voice.close(request.reply_id)
        if request.session_id is None:
            row.table.release()
        elif running.cursor.is_done:
            row.drop_last()  # the next turn's template begins with the end of this one
        self._leave(request)
        self._outbox.append(running.stamped(partial(running.log.done, reason, running.error)))
        self._tracer.counter("pages", available=self.pool.num_available, cached=self.pool.num_cached)

    def _leave(self, request: Request) -> None:
        if request.session_id is not None:
            self._dialogues[request.session_id].busy = None

    def _unfinished(self) -> list[Running]:
        return [running for running in self._running.values() if running.finish is None]

    def _new_row(self) -> Row:
        return Row(PageTable(self.pool))

    def _known(self, session_id: str) -> Dialogue:
        if session_id not in self._dialogues:
            raise ValueError("the session is closed: open a new one, or restore it from an export")
        return self._dialogues[session_id]

    def _idle(self, session_id: str) -> Dialogue:
        dialogue = self._known(session_id)
        if dialogue.busy is not None:
            raise ValueError("the session is still replying: read that reply to its end or cancel it")
        return dialogue

    def _paused(self, dialogue: Dialogue) -> Paused | None:
        running = self._running.get(dialogue.busy or "")
        return dialogue.paused if running is None else running.pause()

    def _check_length(self, num_tokens: int) -> None:
        most = self.max_model_len
        if num_tokens >= most:
            raise ValueError(
                f"history and prompt have {num_tokens} tokens, {num_tokens - most + 1} more than the cache holds beside a reply: "
                f"load the model with max_model_len above {num_tokens}, or open a new session"
            )
