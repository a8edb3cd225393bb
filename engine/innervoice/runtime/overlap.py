"""Replies whose tokens the device draws: their rows there, the steps that are queued, and what the host learns a step late."""

from __future__ import annotations

import logging
from collections import abc, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from innervoice.model.device_step import DeviceStep, Emitted, Pending, RowStart
from innervoice.model.sequence import Sequence, TokenRole
from innervoice.runtime.active_reply import ActiveReply
from innervoice.schedule import Emission, Program, TokenKind
from innervoice.types import OutOfCapacity, Sampling
from innervoice_kernels.sampling.cursor_columns import Ending

log = logging.getLogger("innervoice")

_KINDS = {
    TokenRole.NEUTRAL: None,
    TokenRole.HIDDEN: TokenKind.REFLECTION,
    TokenRole.SPOKEN: TokenKind.SPEECH,
}  # as the reflection weight tells them apart
_GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=1 << 30, ignore_eos=True)


class Astray(RuntimeError):
    """The device's cursor and the host's do not say the same of a reply."""


@dataclass(frozen=True)
class Told:
    """What steps did: rows that drew, prompt tokens fed, seconds on the device (None: nobody measured)."""

    rows: int = 0
    prompt_tokens: int = 0
    took_s: float | None = None


@dataclass
class _Queued:
    """A step. caps: what it granted, by device row; pending None: it only fed prompts."""

    running: list[ActiveReply]
    caps: dict[int, int | None]
    pending: Pending | None
    num_fed: int
    begun: Any
    ended: Any


@dataclass
class _Held:
    """A row's pages as the device has them, and how many of them will not change."""

    pages: list[int] = field(default_factory=list)
    num_fixed: int = 0


class Overlap:
    """Replies in the rows of a stepper, which the host follows from one step behind.

    `begin` takes a reply over, `queue` queues a step of some of them, `read` tells what came of the one before, `follow` lets the
    host's cursor take it. Whatever needs a reply where it really stands reads all that is queued first. trial: a program for rows
    that mean nothing, by which steps are timed.
    """

    def __init__(self, stepper: DeviceStep, trial: Program) -> None:
        self.stepper, self._trial = stepper, trial
        self._rows: list[ActiveReply] = []
        self._held: list[_Held] = []
        self._queued: deque[_Queued] = deque()

    @property
    def num_queued(self) -> int:
        """Steps that are queued and not read."""
        return len(self._queued)

    def begin(self, running: ActiveReply) -> bool:
        """Take over a reply that has its pages; its last token is fed by its first step. False: the host must draw for it."""
        if running.by_host:
            return False
        row, number, sampling = running.row, len(self._rows), running.request.sampling
        room = self.stepper.max_model_len - (len(row.ids) - running.num_tokens)
        start = RowStart(
            token=row.ids[-1],
            position=len(row.ids) - 1,
            pages=row.table.pages,
            program=running.request.program,
            sampling=replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room)),
            caps=running.own_caps,
            reply=running.number,
            log_weight=row.weights[running.number],
            kind=_KINDS[row.roles[-1]],
            cursor=running.cursor.state,
            num_tokens=running.num_tokens,
        )
        try:
            self.stepper.begin(number, start)
        except (ValueError, OutOfCapacity) as error:
            log.info("reply %s is drawn by the host: %s", running.request.reply_id, error)
            running.by_host = True
            return False
        running.device_row = number
        self._rows.append(running)
        self._held.append(_Held(list(row.table.pages), row.table.num_published))
        return True

    def leave(self, running: ActiveReply) -> None:
        """The device draws no more for a reply; one that it does not draw for is left alone."""
        number = running.device_row
        if number is None:
            return
        running.device_row = None
        self.stepper.rows.end(number)
        last, held = self._rows.pop(), self._held.pop()
        if last is not running:
            self.stepper.rows.move(len(self._rows), number)
            self._rows[number], self._held[number], last.device_row = last, held, number

    def is_spent(self, running: ActiveReply) -> bool:
        """Whether what is queued is all that the reply may have."""
        num = running.num_tokens + running.in_flight
        most = running.request.sampling.max_new_tokens
        return num >= most or len(running.row.ids) + running.in_flight >= self.stepper.max_model_len

    def mark(self) -> Any:
        """Where the time of a step begins that also feeds prompts."""
        return self.stepper.mark()

    def queue(
        self, drawing: abc.Sequence[ActiveReply], caps: Mapping[int, int], num_fed: int, begun: Any
    ) -> None:
        """Queue a step of replies whose pages reach as far as it feeds. caps: see Running.grant, by place."""
        granted = {_row_of(running): caps.get(running.place) for running in drawing}
        pending = None
        if drawing:
            self._tell_pages(drawing)
            self.stepper.rows.order(granted)
            pending = self.stepper.step(1 + max(granted), begun=begun)
            for running in drawing:
                running.in_flight += 1
        ended = self.stepper.mark() if pending is None else None
        self._queued.append(_Queued(list(drawing), granted, pending, num_fed, begun, ended))

    def read(self) -> tuple[Told, list[tuple[ActiveReply, Emitted | None, int | None]]]:
        """Wait for the oldest step that is queued -> each reply in it, what it emitted (None: nothing), the cap that it got."""
        queued = self._queued.popleft()
        if queued.pending is None:
            if queued.ended is not None:
                queued.ended.synchronize()
            return Told(
                0,
                queued.num_fed,
                None if queued.ended is None else queued.begun.elapsed_time(queued.ended) / 1e3,
            ), []
        (step,) = self.stepper.read(queued.pending)
        emitted = {one.row: one for one in step}
        for running in queued.running:
            running.in_flight -= 1
        told = [
            (r, emitted.get(n), cap) for r, (n, cap) in zip(queued.running, queued.caps.items(), strict=True)
        ]
        return Told(len(told), queued.num_fed, queued.pending.took_s), told

    @contextmanager
    def trial(self, rows: abc.Sequence[Sequence]) -> Iterator[Callable[[], None]]:
        """A function that takes a step of rows of one token that mean nothing, and waits for it. Only while no reply runs."""
        assert not self._rows, "replies run"
        for number, row in enumerate(rows):
            start = RowStart(row.ids[-1], len(row.ids) - 1, row.table.pages, self._trial, _GREEDY)
            self.stepper.begin(number, start)

        def step() -> None:
            self.stepper.rows.order(dict.fromkeys(range(len(rows))))
            self.stepper.read(self.stepper.step(len(rows)))

        try:
            yield step
        finally:
            for number in range(len(rows)):
                self.stepper.rows.end(number)

    def check_integrity(self) -> None:
        """Raise AssertionError where a reply, its row and, if all is read, its cursor on the device disagree."""
        for number, running in enumerate(self._rows):
            assert running.device_row == number and running.finish is None, "rows without replies"
            num = sum(other is running for queued in self._queued for other in queued.running)
            assert running.in_flight == num, "steps that nobody counted"
            if self._queued:
                continue
            state, num_tokens = self.stepper.rows.state(number)
            assert num_tokens == running.num_tokens, "tokens that the host does not know"
            host = running.cursor.state
            assert replace(state, caps=host.caps, granted=host.granted) == host, "cursors apart"
            held, pages = self._held[number], running.row.table.pages
            assert held.pages[: held.num_fixed] == pages[: held.num_fixed], "pages of another row"

    def _tell_pages(self, drawing: abc.Sequence[ActiveReply]) -> None:
        """Send the pages that changed. Those that are published stay, but for the last, which may have been shared and copied."""
        changed = {}
        for running in drawing:
            number, table = _row_of(running), running.row.table
            held = self._held[number]
            first = max(min(held.num_fixed, table.num_published) - 1, 0)
            if held.pages[first:] != table.pages[first:]:
                changed[number] = table.pages
                held.pages = list(table.pages)
            held.num_fixed = table.num_published
        if changed:
            self.stepper.rows.set_pages(changed)


def follow(running: ActiveReply, told: Emitted) -> Emission:
    """Let the host's cursor take what the device's has emitted. Raises Astray where they differ."""
    cursor = running.cursor
    if told.discarded:
        if cursor.forced is not None or not cursor.discards:
            raise Astray(_apart(running, told, "no draw that is discarded"))
        cursor.finish_text()
    if cursor.forced is None and told.token not in cursor.mask:
        raise Astray(_apart(running, told, f"a draw from {cursor.mask}"))
    emission = cursor.emit_forced() if cursor.forced is not None else cursor.draw(told.token)
    expected = Emission(
        told.token, TokenKind.END if told.kind is None else told.kind, told.segment, told.forced
    )
    if emission is None or emission != expected or cursor.is_done != (told.ending is Ending.STOP):
        raise Astray(_apart(running, told, f"{emission}, ended: {cursor.is_done}"))
    return emission


def _apart(running: ActiveReply, told: Emitted, expected: str) -> str:
    return f"token {running.num_tokens} of this reply is {told} on the device, and by its schedule {expected}: please report this"


def _row_of(running: ActiveReply) -> int:
    assert running.device_row is not None, "the host draws for this reply"
    return running.device_row
