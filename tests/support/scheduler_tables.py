"""Tables of replies for the tests of the scheduler: made by hand, or drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from innervoice.runtime import scheduler
from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    ReplyColumns,
    SchedulerSettings,
    StepPlan,
)

PAGE = 16
POLICIES = tuple(scheduler.POLICIES)


def costs(step_s: float = 0.004, row_s: float = 30e-6) -> LearnedCosts:
    """The costs of a machine on which a step takes step_s and row_s a row."""
    sizes = [2**i for i in range(11)]
    return LearnedCosts({n: step_s + row_s * n for n in sizes}, {n: 0.001 * n for n in sizes}, 20e-6)


def add(jobs: ReplyColumns, now: float = 0.0, *, priority: int = 0, **columns: Any) -> int:
    """Add a reply that decodes, has been heard for a while and owns the pages it needs; columns override that."""
    table_index = jobs.add(now, priority=priority)
    values: dict[str, Any] = {
        "phase": Phase.DECODE, "context": 100, "is_live": True, "has_sound": True, "sound_end_s": now + 2.0, "spoken_left": 30,
        "chunk_s": 2.08, "hidden_most": 100, "hidden_cap": 100, "spoken_rate": 18.75,
    }  # fmt: skip
    values |= columns
    if values["phase"] == Phase.WAITING:
        values |= {"has_sound": False, "prompt_left": values["context"], "prompt_len": values["context"]}
    values.setdefault("pages", -(-(values["context"] - values.get("prompt_left", 0)) // PAGE))
    for name, value in values.items():
        getattr(jobs, name)[table_index] = value
    return table_index


@st.composite
def tables(draw: st.DrawFn) -> tuple[ReplyColumns, float, int]:
    """Any replies at all, the time, and the number of free pages."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    jobs, now, wide = ReplyColumns(4), float(draw(st.floats(0, 100))), draw(st.booleans())
    for _ in range(draw(st.integers(0, 40))):
        phase = Phase(int(random.integers(1, 5)))
        context = int(random.integers(1, 600))
        left = int(random.integers(1, context + 1)) if phase == Phase.PREFILL else 0
        most = int(random.integers(0, 200))
        sounding = bool(random.random() < 0.6) and phase != Phase.WAITING
        reflects = bool(random.random() < 0.4) and phase == Phase.DECODE
        cap = int(random.integers(0, most + 1))
        add(
            jobs, now - float(random.uniform(0, 3)), priority=int(random.integers(-1, 2)), phase=phase, context=context,
            prompt_left=left, is_live=bool(random.random() < 0.8), is_blocked=bool(random.random() < 0.1), has_sound=sounding,
            sound_end_s=now + float(random.uniform(-1, 10)), spoken_left=int(random.integers(0, 40)), is_reflecting=reflects,
            is_listening=phase == Phase.PREFILL and bool(random.random() < 0.2), hidden_most=most, hidden_cap=cap,
            hidden_floor=int(random.integers(0, most + 1)) if random.random() < 0.3 else 0,
            hidden_count=int(random.integers(0, cap + 1)) if reflects else 0, hidden_total=300, sound_total_s=4.0,
            unvoiced_s=float(random.uniform(0, 3)), chunks_ready=int(random.integers(0, 2)),
            more_rows=int(random.integers(1, 4)) if wide and phase != Phase.VOICING and random.random() < 0.3 else 0,
        )  # fmt: skip
    for table_index in jobs.indices.tolist()[:: draw(st.integers(3, 9))]:
        jobs.remove(table_index)
    return jobs, now, draw(st.integers(0, 300))


def state(jobs: ReplyColumns) -> dict[str, bytes]:
    """The bytes of every column."""
    return {name: value.tobytes() for name, value in vars(jobs).items() if isinstance(value, np.ndarray)}


def pages_needed(jobs: ReplyColumns, plan: StepPlan) -> int:
    """The pages that a step takes, less those that it gives back."""
    feeds = dict(plan.prefill)
    feeds = {
        table_index: num + (num == jobs.prompt_left[table_index] and not jobs.is_listening[table_index])
        for table_index, num in feeds.items()
    }
    for table_index in plan.decode.tolist():
        feeds[table_index] = feeds.get(table_index, 0) + 1
    total = 0
    for table_index, num in feeds.items():
        total += max(
            0,
            -(-int(jobs.context[table_index] - jobs.prompt_left[table_index] + num) // PAGE)
            - int(jobs.pages[table_index]),
        )
    return total - sum(int(jobs.pages[table_index]) for table_index in plan.preempt)


settings_of = st.builds(
    SchedulerSettings,
    policy=st.sampled_from(POLICIES),
    max_rows=st.integers(1, 50),
    max_batch=st.integers(1, 50),
    prefill_chunk=st.integers(1, 600),
    reflection_rate=st.one_of(st.none(), st.floats(0, 100)),
)
