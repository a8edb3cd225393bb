"""The interface of a scheduling policy.

Its defaults are the policy `fcfs`: first come, first served, and nothing else.

A policy is an object without state of its own. `order` and `caps` say who draws in a step and how much each
may reflect, `has_room` and `victims` who gets pages and who gives them back, `codec` whose sound is made.
Another policy is a class that overrides some of them, and an object of it is a value of
`SchedulerSettings.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.codec_plan import VoicePlan
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.draft import DraftStep, feed_prompts
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import Columns, ReplyColumns, TableIndices, first_rows, more_rows


@dataclass
class SpokenLoad:
    """Live replies that hold pages: their number, and on average their spoken tokens a second and a chunk's
    seconds.

    more_rows: of a step, that they take beside one each, for further contexts; next_rows: all those of one more.
    """

    num: int
    rate: float
    chunk_s: float
    more_rows: int = 0
    next_rows: int = 1

    @classmethod
    def of(cls, rows: Columns, speaking: TableIndices) -> SpokenLoad:
        """Sum up the replies at these table indices."""
        num = max(len(speaking), 1)
        return cls(
            len(speaking),
            float(rows.spoken_rate[speaking].sum()) / num,
            float(rows.chunk_s[speaking].sum()) / num,
            more_rows(rows, speaking),
        )

    def with_one_more(self, costs: LearnedCosts) -> float:
        """Return the share of the time that the spoken tokens and the sound of all would take, reflection
        left out.
        """
        voice_s = costs.voice.estimate(self.num + 1) / self.chunk_s if self.chunk_s > 0 else 0.0
        return self.rate * costs.decode.estimate(self.num + self.more_rows + self.next_rows) + voice_s


class Policy:
    """First come, first served. Columns are read and never written; arrays of table indices come back."""

    name = "fcfs"
    others = "others came before"  # the trace's reason for a reply that is left out

    def has_room(self, load: SpokenLoad, costs: LearnedCosts, settings: PlanConstants) -> bool:
        """Return whether one more live reply may get pages, beside those that hold some."""
        return True

    def order(self, rows: Columns, drawing: TableIndices) -> TableIndices:
        """Sort the replies that could draw; a step takes the first of them, up to max_batch rows."""
        return drawing[np.argsort(rows.order[drawing], kind="stable")]

    def caps(self, rows: Columns, drawing: TableIndices, settings: PlanConstants) -> TableIndices:
        """Return the hidden-token caps of the replies that draw, of the open reflection or else of the next
        one.
        """
        return rows.hidden_most[drawing]

    def draft(
        self,
        rows: Columns,
        costs: LearnedCosts,
        settings: PlanConstants,
        now: float,
        able: NDArray[np.bool_],
        draws: NDArray[np.bool_],
    ) -> DraftStep:
        """Fill a step as if pages were endless. able: the reply may take part; draws: it could draw a token.

        A policy whose order, caps and prompts depend on each other overrides this in place of `order` and
        `caps`.
        """
        drawing = first_rows(rows, self.order(rows, np.flatnonzero(draws)), settings.max_batch)
        prefill = feed_prompts(rows, settings.prefill_chunk, able & (rows.prompt_left > 0))
        return DraftStep(drawing, prefill, drawing, self.caps(rows, drawing, settings))

    def victims(self, rows: Columns, running: TableIndices) -> TableIndices:
        """Sort the replies that hold pages by who gives them back first: the latest arrival."""
        return running[np.argsort(-rows.order[running], kind="stable")]

    def codec(
        self,
        columns: ReplyColumns,
        ready: TableIndices,
        costs: LearnedCosts,
        settings: PlanConstants,
        now: float,
        *,
        idle: bool,
    ) -> VoicePlan:
        """Choose the replies whose next chunk is made now, among those that are ready.

        idle: the model has nothing to do.
        """
        return VoicePlan(ready)

    def why_left_out(
        self, columns: ReplyColumns, table_index: int, settings: PlanConstants, ahead_s: float
    ) -> tuple[str, Mapping[str, object]]:
        """Return the trace's reason for a reply that could go on and takes no part, with its numbers.

        ahead_s: seconds of its sound that are generated and not played.
        """
        what = "its prompt waits" if columns.prompt_left[table_index] > 0 else "passed over"
        return f"{what}: {self.others}", {}

    def why_preempted(self, columns: ReplyColumns, table_index: int, ahead_s: float) -> str:
        """Return the trace's reason why a reply gives its pages back."""
        return "others need pages, and it came last"


class FixedPolicy(Policy):
    """Arrival order as `fcfs`, with at most `fixed_hidden` tokens a reflection."""

    name = "fixed"

    def caps(self, rows: Columns, drawing: TableIndices, settings: PlanConstants) -> TableIndices:
        """Return the same cap for every reflection."""
        return np.minimum(super().caps(rows, drawing, settings), settings.fixed_hidden)
