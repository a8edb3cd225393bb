"""A policy of one's own: a class that says how it differs, given to the settings as an object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_core import World, program

from innervoice.api.options import EngineOptions
from innervoice.runtime.scheduler import Policy, SchedulerSettings, TableIndices
from innervoice.schedule import Schedule

SCHEDULE = program(Schedule.from_dict({"cycle": [["reflection", 6], ["transcript", 3], ["speech", 4]]}))


class ShortestFirst(Policy):
    """Replies with the shortest history draw first and keep their pages; a reflection has two tokens."""

    name = "shortest"

    def order(self, rows: Any, drawing: TableIndices) -> TableIndices:
        return drawing[np.argsort(rows.context[drawing], kind="stable")]

    def caps(self, rows: Any, drawing: TableIndices, settings: Any) -> TableIndices:
        return np.minimum(rows.hidden_most[drawing], 2)

    def victims(self, rows: Any, running: TableIndices) -> TableIndices:
        return running[np.argsort(-rows.context[running], kind="stable")]

    def why_left_out(self, columns: Any, table_index: int, settings: Any, ahead_s: float) -> Any:
        return "shorter replies go first", {"context": int(columns.context[table_index])}


def run(policy: Policy | str) -> World:
    """A long and a short reply, of which one draws at a time."""
    world = World(settings={"policy": policy, "max_batch": 1})
    world.tracer.start()
    world.submit("long", range(20), SCHEDULE, most=20)
    world.submit("short", [3, 1], SCHEDULE, most=20)
    world.run()
    return world


def test_replies_run_under_a_policy_of_one_s_own() -> None:
    world, plain = run(ShortestFirst()), run("fcfs")
    done: Any = {name: received.done for name, received in world.received.items()}
    assert done["short"].t < done["long"].t and plain.received["long"].done.t < plain.received["short"].done.t
    assert all(max(one.usage.reflection_caps) <= 2 for one in done.values())
    assert max(plain.received["long"].done.usage.reflection_caps) > 2
    assert any(event["name"] == "shorter replies go first" for event in world.tracer._events)
    world.core.check_integrity()


def test_options_take_a_policy_by_name_or_as_an_object() -> None:
    own = ShortestFirst()
    assert EngineOptions(policy=own).policy is own
    assert SchedulerSettings(policy=own).planner.name == "shortest"
    with pytest.raises(ValueError, match="policy is 'shortest': use slack, fixed, fcfs, or a Policy"):
        SchedulerSettings(policy="shortest")
