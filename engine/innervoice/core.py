"""The only loop: rows through the model, tokens through their schedules, speech through the voice. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from innervoice.batch import Role, Row
from innervoice.blocks import PagePool, PageTable
from innervoice.reply_log import HIDDEN, ReplyLog
from innervoice.runner import Runner
from innervoice.schedule import Cursor, Emission, FreeCursor, Kind, Program, make_cursor
from innervoice.text import TextTokenizer
from innervoice.trace import Tracer
from innervoice.types import Event, FinishReason, Sampling
from innervoice.voice import Voice
from innervoice_kernels.sample import REFUSED, Draw, sample


@dataclass(frozen=True)
class Request:
    """A validated request: sampling has no unset field; submitted_s is the caller's clock when it came."""

    reply_id: str
    prompt_ids: tuple[int, ...]
    program: Program
    sampling: Sampling
    submitted_s: float
    caps: tuple[int, ...] = ()
    deadline_s: float = math.inf


@dataclass
class _Running:
    request: Request
    row: Row
    cursor: Cursor | FreeCursor
    log: ReplyLog
    num_tokens: int = 0
    num_speech: int = 0
    finish: FinishReason | None = None
    error: str | None = None


class Core:
    """Runs requests, at most max_rows at once, the others waiting in order. Not thread-safe: one thread steps it.

    step_tokens and step_voice make events; drain hands them over stamped with the time they were ready.
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
    ) -> None:
        self.runner, self.pool = runner, pool
        self.max_model_len = max_model_len
        self._tokenizer, self._voice, self._tracer = tokenizer, voice, tracer
        self._max_rows = max_rows
        self._codes_per_s = math.inf if voice is None else voice.codes_per_s
        self._waiting: list[Request] = []
        self._running: dict[str, _Running] = {}
        self._outbox: list[Callable[[float], Event]] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._outbox)

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled") -> None:
        """End a reply now; its pages are free and its Done is next. Unknown and ended replies are left alone."""
        for request in [r for r in self._waiting if r.reply_id == reply_id]:
            self._waiting.remove(request)
            self._outbox.append(_stamped(request, partial(self._new_log(request).done, reason, None)))
        if reply_id in self._running:
            self._end(self._running[reply_id], reason)

    def step_tokens(self, now: float) -> None:
        """One forward pass over all running rows, and one drawn token for each, with the forced ones behind it."""
        self._time_out(now)
        self._admit()
        active = [r for r in self._running.values() if r.finish is None]
        for running in active:
            self._emit_forced(running)
        active = [r for r in active if r.finish is None]
        if not active:
            return
        for running in active:
            running.row.table.grow(len(running.row.ids))
        logits = self.runner.forward([r.row for r in active])
        with self._tracer.span("sample", rows=len(active)):
            self._draw(active, logits, d=0)

    def step_voice(self) -> None:
        """Turn the speech tokens of every reply that has a chunk ready into sound, and end the replies that are complete."""
        if self._voice is not None:
            for reply_id, pcm, is_last in self._voice.step():
                running = self._running[reply_id]
                if len(pcm):
                    self._outbox.append(_stamped(running.request, partial(running.log.audio, pcm)))
                if is_last:
                    assert running.finish is not None, "the voice finished before the reply"
                    self._end(running, running.finish)
        else:
            for running in [r for r in self._running.values() if r.finish is not None]:
                assert running.finish is not None
                self._end(running, running.finish)

    def drain(self, now: float) -> list[Event]:
        """Events made since the last call, in order, ready at `now`."""
        made, self._outbox = self._outbox, []
        return [make(now) for make in made]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_rows:
            request = self._waiting.pop(0)
            weight = request.program.schedule.reflection_weight
            running = _Running(
                request=request,
                row=Row.of_prompt(request.prompt_ids, PageTable(self.pool, self.runner.page_size), math.log(weight)),
                cursor=make_cursor(request.program, request.caps, ignore_eos=request.sampling.ignore_eos),
                log=self._new_log(request),
            )
            self._running[request.reply_id] = running
            if self._voice is not None:
                self._voice.open(request.reply_id)
            self._tracer.instant("admit", reply=request.reply_id, prompt=len(request.prompt_ids))

    def _new_log(self, request: Request) -> ReplyLog:
        return ReplyLog(
            request.reply_id,
            self._tokenizer,
            num_prompt=len(request.prompt_ids),
            sampling=request.sampling,
            speech_start=(request.program.vocabulary.speech or (0, 0))[0],
            rate=1 if self._voice is None else self._voice.sample_rate,
        )

    def _draw(self, active: Sequence[_Running], logits: Tensor, *, d: int) -> None:
        draws = [self._draw_of(running, d) for running in active]
        ids, logprobs = sample(logits, draws)
        again: list[int] = []
        for index, (running, token, logprob) in enumerate(zip(active, ids.tolist(), logprobs.tolist(), strict=True)):
            if token == REFUSED:
                self._fail(running, "the model's logits are not numbers; check the weights, or use a wider dtype")
                continue
            emission = running.cursor.draw(token)
            if emission is not None:
                self._emit(running, emission, logprob)
            self._emit_forced(running)
            # A discarded draw is drawn again, unless a forced id has taken the place of this token.
            if emission is None and running.finish is None and running.row.num_cached == len(running.row.ids):
                again.append(index)
        if again:
            assert d == 0, "a token takes at most one discarded draw"
            self._draw([active[i] for i in again], logits[again], d=1)

    def _draw_of(self, running: _Running, d: int) -> Draw:
        sampling, own, mask = running.request.sampling, running.cursor.sampling, running.cursor.mask
        temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
        if own is not None:
            temperature = temperature if own.temperature is None else own.temperature
            top_k = top_k if own.top_k is None else own.top_k
            top_p = top_p if own.top_p is None else own.top_p
        assert temperature is not None and top_k is not None and top_p is not None and sampling.seed is not None
        return Draw(mask.ranges, mask.extras, temperature, top_k, top_p, sampling.seed, n=running.num_tokens, d=d)

    def _emit_forced(self, running: _Running) -> None:
        while running.finish is None and running.cursor.forced is not None:
            self._emit(running, running.cursor.emit_forced(), None)

    def _emit(self, running: _Running, emission: Emission, logprob: float | None) -> None:
        request, kind, token = running.request, emission.kind, emission.token
        hidden = kind in HIDDEN
        role = Role.HIDDEN if hidden else Role.NEUTRAL if kind is Kind.END else Role.SPOKEN
        running.row.append(token, role, 1)
        logprob = logprob if request.sampling.logprobs else None
        self._outbox.append(_stamped(request, partial(running.log.token, emission, logprob)))
        running.num_tokens += 1
        running.num_speech += kind is Kind.SPEECH
        if self._voice is not None:
            if kind is Kind.SPEECH:
                self._voice.push(request.reply_id, [token - (request.program.vocabulary.speech or (0, 0))[0]])
            elif kind is not Kind.END:
                self._voice.tick(request.reply_id)
        self._finish_if_over(running, token)

    def _finish_if_over(self, running: _Running, token: int) -> None:
        sampling = running.request.sampling
        if running.cursor.is_done or token in sampling.stop_token_ids:
            running.finish = "stop"
        elif (
            running.num_tokens >= sampling.max_new_tokens
            or len(running.row.ids) >= self.max_model_len
            or (sampling.max_audio_s is not None and running.num_speech >= sampling.max_audio_s * self._codes_per_s)
        ):
            running.finish = "length"
        if running.finish is not None and self._voice is not None:
            self._voice.finish(running.request.reply_id)

    def _fail(self, running: _Running, error: str) -> None:
        running.error = error
        self._end(running, "error")

    def _time_out(self, now: float) -> None:
        late = [r.reply_id for r in self._waiting if now >= r.deadline_s]
        late += [key for key, running in self._running.items() if now >= running.request.deadline_s]
        for reply_id in late:
            self.cancel(reply_id, "timeout")

    def _end(self, running: _Running, reason: FinishReason) -> None:
        request = running.request
        del self._running[request.reply_id]
        running.row.table.release()
        if self._voice is not None:
            self._voice.close(request.reply_id)
        self._outbox.append(_stamped(request, partial(running.log.done, reason, running.error)))
        self._tracer.counter("pages", free=self.pool.num_free)


def _stamped(request: Request, make: Callable[..., Event]) -> Callable[[float], Event]:
    def at(now: float) -> Event:
        return make(t=now - request.submitted_s)

    return at
