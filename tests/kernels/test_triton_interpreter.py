"""The kernels' cursor on random schedules against the tests' own reading of the rules: names, tags, choices, feeds and caps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import need_interpreter

need_interpreter()

from naive_schedule import Naive, scripted  # noqa: E402
from random_schedules import SIZE, VOCABULARY, fed_schedules, feeds  # noqa: E402
from triton_rows import allowed_ids, rows_of  # noqa: E402

from innervoice.schedule import Cursor, Emission, Schedule, compile_schedule, pack  # noqa: E402
from innervoice.types import Sampling  # noqa: E402
from innervoice_kernels.sampling.cursor import SLOTS, Rows, advance, prepare, state_columns  # noqa: E402
from innervoice_kernels.sampling.cursor_columns import (  # noqa: E402
    Ending,
    OutputColumn,
    StateColumn,
    TokenKind,
)

CASES = st.fixed_dictionaries(
    {
        "schedule": fed_schedules(),
        "absent": st.sets(st.sampled_from(["open", "close", "done"]), max_size=1),
        "caps": st.lists(st.integers(0, 5), max_size=4),
        "seed": st.integers(0, 2**32 - 1),
        "limit": st.integers(1, 16),
        "given_ids": feeds,
    }
)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


class Followed:
    """A reply of the device: what it has emitted, and the host's cursor, which takes what comes from feeds."""

    def __init__(self, case: dict[str, Any]) -> None:
        vocab, logits = scripted(case["absent"], case["seed"])
        self.expected = Naive(
            case["schedule"], vocab, logits, case["limit"], case["caps"], case["given_ids"]
        ).run()
        names = {name: vocab[name] for name in ("open", "close", "done")}
        schedule = Schedule.from_dict(case["schedule"] | {"tokens": names})
        self.program = compile_schedule(schedule, replace(VOCABULARY, **names))
        assert self.program.fits_device
        self.logits = torch.from_numpy(logits)
        self.limit, self.caps, self.left = case["limit"], case["caps"], case["given_ids"]
        self.cursor = Cursor(self.program, self.caps)
        self.ids: list[int] = []
        self.kinds: list[str] = []

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=self.limit)

    def take(self, line: list[int]) -> None:
        """Take the device's token of a step, as the engine's host does."""
        if line[OutputColumn.DISCARDED]:
            self.cursor.finish_text()
        if line[OutputColumn.KIND] < 0:
            return
        forced = self.cursor.forced is not None
        emission = self.cursor.emit_forced() if forced else self.cursor.draw(line[OutputColumn.TOKEN])
        assert emission is not None and emission.kind == line[OutputColumn.KIND]
        self._add(emission)

    def go_on(self, rows: Rows, row: int) -> None:
        """Give it what it waits for: the ids of a feed, then the feed's end."""
        while self.cursor.waits and len(self.ids) < self.limit:
            name = self.cursor.feed_name
            assert name is not None
            if self.left[name]:
                self._add(self.cursor.feed(self.left[name].pop(0)))
            else:
                self.cursor.close_feed()
        if len(self.ids) >= self.limit:
            rows.state[row, StateColumn.IS_DONE] = Ending.IDLE
            return
        kept = self.cursor.state
        state = state_columns(len(self.ids), kept.caps, **pack.state_values(kept))
        rows.state[row] = torch.tensor(state, dtype=torch.int32)

    def _add(self, emission: Emission) -> None:
        self.ids.append(emission.token)
        self.kinds.append(TokenKind(emission.kind).label)


def hold_rows(cases: list[dict[str, Any]]) -> None:
    """Draws are made by torch from the masks of the kernels."""
    replies = [Followed(case) for case in cases]
    rows, programs = rows_of([(one.program, one.sampling, one.caps) for one in replies])
    for row, reply in enumerate(replies):
        if reply.cursor.waits:
            reply.go_on(rows, row)
    for _ in range(2 * 16 + 2):
        prepare(rows, programs)
        allowed = allowed_ids(rows, SIZE)
        logits = torch.stack([one.logits[min(len(one.ids), 59)] for one in replies])
        best = logits.repeat_interleave(SLOTS, 0).masked_fill(~allowed, -1).argmax(1)
        drawn = best.masked_fill(~allowed.any(1), -1).int().reshape(-1, SLOTS)
        advance(rows, programs, drawn, torch.zeros(len(replies), SLOTS))
        for row, (reply, line) in enumerate(zip(replies, rows.output.tolist(), strict=True)):
            reply.take(line)
            if int(rows.state[row, StateColumn.IS_DONE]) == Ending.FED:
                reply.go_on(rows, row)
        if (rows.state[:, StateColumn.IS_DONE] != Ending.RUNNING).all():
            break
    assert [(one.ids, one.kinds) for one in replies] == [one.expected for one in replies]


@settings(max_examples=4, deadline=None, suppress_health_check=CHECKS, derandomize=True)
@given(cases=st.lists(CASES, min_size=25, max_size=25))
def test_a_hundred_random_schedules_equal_the_naive_interpreter(cases: list[dict[str, Any]]) -> None:
    hold_rows(cases)


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=CHECKS)
@given(cases=st.lists(CASES, min_size=20, max_size=20))
def test_two_thousand_random_schedules_equal_the_naive_interpreter(cases: list[dict[str, Any]]) -> None:
    hold_rows(cases)
