"""A policy from outside the package, behind a check of every answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isnan
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.codec_plan import VoicePlan
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.draft import DraftStep
from innervoice.runtime.scheduler.policy import Policy, SpokenLoad
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import NO_INDICES, Columns, ReplyColumns, TableIndices, more_rows


class PolicyError(ValueError):
    """A scheduling policy raised, or gave an answer that cannot be carried out."""


class CheckedPolicy(Policy):
    """Asks a policy, and raises PolicyError for an answer that does not fit the question.

    The policy sees columns that it cannot write, and copies of all else.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name = policy.name

    def has_room(self, load: SpokenLoad, costs: LearnedCosts, settings: PlanConstants) -> bool:
        """Ask the policy for a truth value."""
        answer = self._ask(self._policy.has_room, replace(load), costs, settings)
        if not isinstance(answer, bool | np.bool_):
            self._refuse("has_room", answer, "True or False")
        return bool(answer)

    def order(self, rows: Columns, drawing: TableIndices) -> TableIndices:
        """Ask the policy for some of the replies that could draw, each once."""
        answer = self._ask(self._policy.order, rows, drawing.copy())
        return self._subset(
            "order", answer, drawing, "the table indices that it was given, each at most once"
        )

    def caps(self, rows: Columns, drawing: TableIndices, settings: PlanConstants) -> TableIndices:
        """Ask the policy for a cap from 0 for each reply that draws."""
        answer = self._ask(self._policy.caps, rows, drawing.copy(), settings)
        return self._counts("caps", answer, len(drawing))

    def draft(
        self,
        rows: Columns,
        costs: LearnedCosts,
        settings: PlanConstants,
        now: float,
        able: NDArray[np.bool_],
        draws: NDArray[np.bool_],
    ) -> DraftStep:
        """Ask the policy for a step, or for its order and caps where it drafts as the interface does."""
        seen = rows.read_only()
        if type(self._policy).draft is Policy.draft:
            return super().draft(seen, costs, settings, now, able, draws)
        answer = self._ask(self._policy.draft, seen, costs, settings, now, able.copy(), draws.copy())
        if not isinstance(answer, DraftStep):
            self._refuse("draft", answer, "a DraftStep")
        drawing = np.flatnonzero(draws)
        wants = "table indices of replies that could draw, each at most once"
        decode = self._subset("draft (decode)", answer.decode, drawing, wants)
        if len(decode) + more_rows(rows, decode) > settings.max_batch:
            self._refuse("draft (decode)", answer.decode, f"replies of at most {settings.max_batch} rows")
        cap_rows = self._subset("draft (cap_rows)", answer.cap_rows, drawing, wants)
        caps = self._counts("draft (caps)", answer.caps, len(cap_rows))
        prefill = self._prompts(answer.prefill, rows, settings, able)
        return DraftStep(decode, prefill, cap_rows, caps, self._time("draft (wake_s)", answer.wake_s))

    def victims(self, rows: Columns, running: TableIndices) -> TableIndices:
        """Ask the policy for all replies that hold pages, in its order."""
        wants = "all the table indices that it was given, each once"
        answer = self._ask(self._policy.victims, rows.read_only(), running.copy())
        victims = self._subset("victims", answer, running, wants)
        if len(victims) != len(running):
            self._refuse("victims", answer, wants)
        return victims

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
        """Ask the policy for some of the replies whose chunks are ready."""
        seen = columns.read_only()
        answer = self._ask(self._policy.codec, seen, ready.copy(), costs, settings, now, idle=idle)
        if not isinstance(answer, VoicePlan):
            self._refuse("codec", answer, "a VoicePlan")
        wants = "the table indices that it was given, each at most once"
        indices = self._subset("codec (indices)", answer.indices, ready, wants)
        return VoicePlan(indices, self._time("codec (wake_s)", answer.wake_s))

    def why_left_out(
        self, columns: ReplyColumns, table_index: int, settings: PlanConstants, ahead_s: float
    ) -> tuple[str, Mapping[str, object]]:
        """Ask the policy for the trace's reason."""
        answer = self._ask(self._policy.why_left_out, columns.read_only(), table_index, settings, ahead_s)
        is_reason = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], str)
        if not is_reason or not isinstance(answer[1], Mapping):
            self._refuse("why_left_out", answer, "a text and a mapping")
        return answer[0], answer[1]

    def why_preempted(self, columns: ReplyColumns, table_index: int, ahead_s: float) -> str:
        """Ask the policy for the trace's reason."""
        answer = self._ask(self._policy.why_preempted, columns.read_only(), table_index, ahead_s)
        if not isinstance(answer, str):
            self._refuse("why_preempted", answer, "a text")
        return answer

    def _ask(self, decide: Callable[..., object], *facts: object, **more: object) -> Any:
        """Ask for one decision. Raises PolicyError where the policy raises."""
        try:
            return decide(*facts, **more)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PolicyError(f"policy {self.name!r}: {decide.__name__} raised {what}") from error

    def _refuse(self, method: str, answer: object, wants: str) -> NoReturn:
        raise PolicyError(f"policy {self.name!r}: {method} returned {answer!r:.200}: return {wants}")

    def _subset(self, method: str, answer: Any, among: TableIndices, wants: str) -> TableIndices:
        """Read an answer as some of these table indices, each at most once."""
        indices = _whole_numbers(answer)
        if indices is None or len(np.unique(indices)) < len(indices) or not np.isin(indices, among).all():
            self._refuse(method, answer, wants)
        return indices

    def _counts(self, method: str, answer: Any, num: int) -> TableIndices:
        """Read an answer as so many whole numbers from 0."""
        counts = _whole_numbers(answer)
        if counts is None or len(counts) != num or (counts < 0).any():
            self._refuse(method, answer, f"{num} whole numbers from 0, one for each reply")
        return counts

    def _prompts(
        self, answer: Any, rows: Columns, settings: PlanConstants, able: NDArray[np.bool_]
    ) -> list[tuple[int, int]]:
        """Read an answer as the prompt tokens that a step feeds."""
        pairs = (
            np.array(answer, ndmin=2) if isinstance(answer, list) and answer else np.zeros((0, 2), np.int64)
        )
        wants = (
            f"(table index, prompt tokens) of replies with a prompt, {settings.prefill_chunk} tokens at most"
        )
        if (
            not isinstance(answer, list)
            or pairs.ndim != 2
            or pairs.shape[1] != 2
            or pairs.dtype.kind not in "iu"
        ):
            self._refuse("draft (prefill)", answer, wants)
        indices = self._subset(
            "draft (prefill)", pairs[:, 0], np.flatnonzero(able & (rows.prompt_left > 0)), wants
        )
        nums = pairs[:, 1]
        if ((nums < 1) | (nums > rows.prompt_left[indices])).any() or nums.sum() > settings.prefill_chunk:
            self._refuse("draft (prefill)", answer, wants)
        return [(index, num) for index, num in pairs.tolist()]

    def _time(self, method: str, answer: Any) -> float:
        """Read an answer as a time in seconds, which may be infinite."""
        if not isinstance(answer, int | float | np.floating) or isnan(answer):
            self._refuse(method, answer, "a time in seconds")
        return float(answer)


def _whole_numbers(answer: Any) -> TableIndices | None:
    """An answer as whole numbers [n], None where it is something else."""
    if isinstance(answer, list | tuple) and not answer:
        return NO_INDICES
    if not isinstance(answer, np.ndarray | list | tuple):
        return None
    try:
        numbers = np.asarray(answer)
    except ValueError:  # lists of unequal lengths
        return None
    return numbers.astype(np.int64) if numbers.ndim == 1 and numbers.dtype.kind in "iu" else None
