"""Policies from outside whose answers cannot be carried out: each is named, with what it returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_core import World, program

from innervoice.runtime.scheduler import (
    POLICIES,
    Policy,
    PolicyError,
    ReplyColumns,
    SchedulerSettings,
    VoicePlan,
)
from innervoice.runtime.scheduler.draft import DraftStep
from innervoice.runtime.scheduler.policy import SpokenLoad
from innervoice.runtime.scheduler.slack import SlackPolicy
from innervoice.schedule import Schedule

SCHEDULE = program(Schedule.from_dict({"cycle": [["reflection", 6], ["transcript", 3], ["speech", 4]]}))


def run(policy: Policy | str) -> World:
    """Three replies to their ends."""
    world = World(settings={"policy": policy})
    for number in range(3):
        world.submit(f"reply {number}", range(5 + number), SCHEDULE, most=20)
    world.run()
    return world


def made(method: str, answer: Any, base: type[Policy] = Policy) -> Policy:
    """A policy named odd, one method of which gives this answer; a function makes it from the arguments."""

    def answers(self: Policy, *facts: Any, **more: Any) -> Any:
        return answer(*facts) if callable(answer) else answer

    answers.__name__ = method
    return type("Odd", (base,), {"name": "odd", method: answers})()


def draft(**fields: Any) -> Any:
    """A draft in which these fields are wrong."""

    def answer(rows: Any, costs: Any, settings: Any, now: float, able: Any, draws: Any) -> DraftStep:
        return Policy().draft(rows, costs, settings, now, able, draws)._replace(**fields)

    return answer


WRONG = [
    ("order", None, "order returned None"),
    ("order", lambda rows, drawing: np.concatenate([drawing, drawing]), "each at most once"),
    ("order", lambda rows, drawing: drawing + len(rows.phase), "order returned array"),
    ("order", lambda rows, drawing: -1 - drawing, "order returned array"),
    ("order", lambda rows, drawing: drawing * 1.0, "order returned array"),
    ("order", lambda rows, drawing: np.ones(len(drawing), bool), "order returned array"),
    ("order", lambda rows, drawing: drawing[:, None], "order returned array"),
    ("order", lambda rows, drawing: 1 // 0, "order raised ZeroDivisionError"),
    ("order", lambda rows, drawing: rows.context.fill(0), "order raised ValueError"),
    ("caps", lambda rows, drawing, settings: np.zeros(len(drawing) + 1, int), "caps returned array"),
    ("caps", lambda rows, drawing, settings: np.full(len(drawing), 2.5), "caps returned array"),
    ("caps", lambda rows, drawing, settings: np.full(len(drawing), -9), "whole numbers from 0"),
    ("draft", None, "draft returned None"),
    ("draft", draft(decode=[0, 0]), r"draft \(decode\) returned \[0, 0\]"),
    ("draft", draft(caps=[1] * 9), r"draft \(caps\) returned"),
    ("draft", draft(prefill=[(0, 10**6)]), r"draft \(prefill\) returned \[\(0, 1000000\)\]"),
    ("draft", draft(prefill=[(0, 1, 2)]), r"draft \(prefill\) returned"),
    ("draft", draft(wake_s=float("nan")), r"draft \(wake_s\) returned nan"),
    ("codec", None, "codec returned None"),
    ("codec", lambda columns, ready, *rest: VoicePlan(ready + 1), r"codec \(indices\) returned"),
]


@pytest.mark.parametrize(("method", "answer", "message"), WRONG)
def test_a_wrong_answer_is_named(method: str, answer: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=f"^policy 'odd': .*{message}"):
        run(made(method, answer))


@pytest.mark.parametrize(
    ("method", "answer", "facts"),
    [
        ("has_room", 3, (SpokenLoad(1, 1.0, 1.0), None, None)),
        ("victims", lambda rows, running: running[1:], (ReplyColumns(), np.arange(3))),
        ("victims", [[1], [1, 2]], (ReplyColumns(), np.arange(3))),
        ("why_left_out", "text", (ReplyColumns(), 0, None, 0.0)),
        ("why_preempted", None, (ReplyColumns(), 0, 0.0)),
    ],
)
def test_answers_that_a_calm_run_does_not_need_are_checked(method: str, answer: Any, facts: Any) -> None:
    checked = SchedulerSettings(policy=made(method, answer)).planner
    with pytest.raises(PolicyError, match=f"^policy 'odd': {method} returned"):
        getattr(checked, method)(*facts)


def test_policies_of_the_package_are_asked_directly() -> None:
    assert all(SchedulerSettings(policy=name).planner is POLICIES[name] for name in POLICIES)
    assert type(SchedulerSettings(policy=SlackPolicy()).planner) is SlackPolicy
    with pytest.raises(ValueError, match="policy is 3: use slack, fixed, fcfs, or a Policy"):
        SchedulerSettings(policy=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
def test_a_checked_policy_plans_as_it_does_unchecked(name: str) -> None:
    plain, checked = run(name), run(type("Same", (type(POLICIES[name]),), {})())
    assert len(plain.received) == 3
    for reply_id, received in plain.received.items():
        assert received.done is not None and received.ids == checked.received[reply_id].ids
        assert received.done == checked.received[reply_id].done
