"""Random lives of a core under a virtual clock, as rules that hypothesis draws."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted_core import NAN, POISON, World, program
from served_core import Served

from innervoice.schedule import Schedule, Segment
from innervoice.types import OutOfCapacity

THINKS = program(Schedule((Segment("reflection", 12), Segment("transcript", 3), Segment("speech", 6))))
SPEAKS = program(
    Schedule(
        (Segment("transcript", 2), Segment("speech", 5), Segment("reflection", 6)),
        prologue=(Segment("forced", ids=(3, 4)),),
    )
)
PROGRAMS = [THINKS, SPEAKS]
prompts = st.lists(st.integers(0, 20), min_size=1, max_size=30)


_World = TypeVar("_World", bound=World)


class Lives(RuleBasedStateMachine):
    """Replies and sessions that begin, are cancelled, cut, starved, poisoned, forked, while readers die and
    the clock jumps.
    """

    stepped = False

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.sessions: dict[str, list[str]] = {}
        self.histories: dict[str, list[int]] = {}  # of the turn that a reply answers, prompt included
        self.poisoned: dict[str, str] = {}

    @initialize(
        pages=st.sampled_from([24, 48, 96]),
        rows=st.integers(1, 5),
        policy=st.sampled_from(["slack", "slack", "fixed", "fcfs"]),
        preempt=st.sampled_from(["recompute", "swap"]),
        waiting=st.sampled_from([None, 3]),
        share=st.booleans(),
        patience=st.sampled_from([None, 3.0]),
    )
    def begin(
        self,
        pages: int,
        rows: int,
        policy: str,
        preempt: str,
        waiting: int | None,
        share: bool,
        patience: float | None,
    ) -> None:
        self.world = self.make_world(
            self.stepped,
            Served,
            num_pages=pages,
            max_rows=rows,
            settings={"policy": policy, "fixed_hidden": 5},
            preempt=preempt,
            max_waiting=waiting,
            share_prefixes=share,
            reader_timeout_s=patience,
        )

    def make_world(self, stepped: bool, kind: type[_World], **options: Any) -> _World:
        return kind(max_model_len=80, steady=False, stepped=stepped, **options)

    def _name(self) -> str:
        self.number += 1
        return f"r{self.number}"

    def _submit(self, prompt: list[int], which: int, **request: Any) -> str | None:
        name = self._name()
        try:
            self.world.submit(name, prompt, PROGRAMS[which], seed=self.number, **request)
        except (OutOfCapacity, ValueError):
            assert self.world.core.table.take_waiting(name) is None
            return None
        return name

    @rule(
        prompt=prompts,
        which=st.integers(0, 1),
        live=st.booleans(),
        priority=st.integers(0, 1),
        patience=st.sampled_from([None, None, 0.3, 2.0]),
        most=st.integers(1, 50),
    )
    def submit(
        self, prompt: list[int], which: int, live: bool, priority: int, patience: float | None, most: int
    ) -> None:
        deadline = {} if patience is None else {"deadline_s": self.world.now + patience}
        name = self._submit(prompt, which, is_live=live, priority=priority, most=most, **deadline)
        if name is not None:
            self.histories[name] = list(prompt)

    @rule(prompt=prompts, at=st.integers(0, 30), bad=st.sampled_from([POISON, NAN]))
    def submit_broken(self, prompt: list[int], at: int, bad: int) -> None:
        prompt.insert(min(at, len(prompt)), bad)
        name = self._submit(prompt, 0)
        if name is not None:
            self.poisoned[name] = "poisoned" if bad == POISON else "not numbers"

    @precondition(lambda self: len(self.sessions) < 6)
    @rule()
    def open_session(self) -> None:
        name = self._name()
        if self.world.core.num_rows < self.world.core.max_rows:
            self.world.core.sessions.open(name)
            self.sessions[name] = []
            return
        with pytest.raises(OutOfCapacity, match="sessions are in use"):
            self.world.core.sessions.open(name)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), prompt=prompts, which=st.integers(0, 1))
    def turn(self, data: st.DataObject, prompt: list[int], which: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        state = self.world.core.registry.known(session)
        if state.busy is not None or state.paused is not None:
            return
        history = state.sequence.ids[: state.num_tokens]
        name = self._submit(prompt, which, session_id=session)
        if name is not None:
            self.histories[name] = [*history, *prompt]
            self.sessions[session].append(name)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), ids=prompts)
    def prefetch(self, data: st.DataObject, ids: list[int]) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        state = self.world.core.registry.known(session)
        if state.busy is None:
            with suppress(ValueError):  # too long
                self.world.core.sessions.prefetch(session, ids)
            return
        with pytest.raises(ValueError, match="still replying"):
            self.world.core.sessions.prefetch(session, ids)

    @precondition(lambda self: self.sessions)
    @rule(
        data=st.data(),
        cut=st.sampled_from(["speech", "transcript"]),
        keep=st.sampled_from(["drop", "keep"]),
        played=st.floats(0, 9),
    )
    def interrupt(self, data: st.DataObject, cut: Any, keep: Any, played: float) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        core = self.world.core
        self.world.worker.call(lambda core: None)  # a cancellation on its way comes first
        state = core.registry.known(session)
        busy, before = state.busy, list(state.sequence.ids)
        reply = None if busy is None else core.table.find(busy)
        drawn = 0 if reply is None else reply.in_flight  # by the device, and read by the interruption
        played_s = None if played > 6 else min(played, state.last.playback.sent_s if state.last else 0.0)
        if busy is None and state.last is None:
            with pytest.raises(ValueError, match="has not replied"):
                core.sessions.interrupt(session, self.world.now, played_s, cut, keep)
            return
        heard = self.world.worker.interrupt(
            lambda sessions: sessions.interrupt(session, self.world.now, played_s, cut, keep)
        )
        sequence = state.sequence
        assert state.busy is None and heard.history_tokens == state.num_tokens
        assert (Counter(sequence.ids) - Counter(before)).total() <= drawn
        assert sequence.num_cached <= len(sequence.ids) and (
            cut == "speech" or heard.unheard_text_tokens == 0
        )
        if busy is not None:
            reader = self.world.readers[busy]
            assert [done.finish_reason for done in reader.ends] == [
                "interrupted"
            ] and reader.queue.num_unread == 1

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def fork_or_close(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        if data.draw(st.booleans()):
            name = self._name()
            with suppress(OutOfCapacity):
                self.world.core.sessions.fork(session, name)
                self.sessions[name] = []
        else:
            self.world.core.sessions.close(session)
            del self.sessions[session]

    @precondition(lambda self: self.world.received)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "rest", "read", "ack"]))
    def disturb(self, data: st.DataObject, what: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.received)))
        core, reader = self.world.core, self.world.readers[name]
        if what == "cancel" and reader.stream is not None:
            reader.stream.cancel()
        elif what in ("rest", "read"):
            reader.reads = what == "read"
        elif what == "ack" and (session := self.world.requests[name].session_id) in self.sessions:
            with suppress(ValueError):
                core.sessions.acknowledge(session, self.world.now, data.draw(st.floats(-1, 5)), name)

    @precondition(lambda self: any(not reader.is_dead for reader in self.world.readers.values()))
    @rule(data=st.data(), how=st.sampled_from(["dropped", "thread", "loop"]))
    def reader_dies(self, data: st.DataObject, how: str) -> None:
        name = data.draw(
            st.sampled_from(sorted(name for name, reader in self.world.readers.items() if not reader.is_dead))
        )
        self.world.readers[name].die(how, self.world.received[name])

    @rule(steps=st.integers(1, 12))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @rule(jump=st.sampled_from([-50.0, -0.2, 0.2, 3.0, 500.0]))
    def clock_jumps(self, jump: float) -> None:
        self.world.now += jump

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "world"):
            self.world.core.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for reader in world.readers.values():
            reader.reads = True
        world.run()
        world.core.check_integrity()
        for session in self.sessions:
            world.core.sessions.close(session)
        assert world.pool.num_available == world.pool.num_pages, "pages leak"
        assert len(world.core.table.columns) == 0 and world.voice.num_open == 0 and not world.worker._queues
        for name, reader in world.readers.items():
            (done,) = reader.ends
            reason, error = done.finish_reason, done.error
            assert (reason == "error") == (error is not None)
            if error is not None:
                known = (
                    self.poisoned.get(name, "-"),
                    "this voice broke",
                    "pages is full",
                    "this reply was not read for 3 s",
                )
                assert any(why in error for why in known), error
            if not reader.is_dead:
                assert world.received[name].done is done
                if name in self.histories and reason in ("stop", "length"):
                    self._again(name)

    def _again(self, name: str) -> None:
        """Alone in a core of its own, with the budgets that it came to have, a reply is the same."""
        received, request = self.world.received[name], self.world.requests[name]
        assert received.done is not None
        alone = self.make_world(False, World, num_pages=64, max_rows=1)
        caps, most = received.done.usage.reflection_caps, request.sampling.max_new_tokens
        seed = request.sampling.seed or 0
        alone.submit(
            "again", self.histories[name], request.program, seed, caps=caps, most=most, is_live=False
        )
        alone.run()
        assert alone.received["again"].ids == received.ids
        assert np.array_equal(alone.received["again"].samples, received.samples)


class SteppedLives(Lives):
    """The same, drawn by the device, for those that it can hold."""

    stepped = True

    @rule()
    def settle(self) -> None:
        self.world.core.decoder.settle()
