"""The policies by their names, and SchedulerSettings, which hold one of them with its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from innervoice.runtime.scheduler.checked_policy import CheckedPolicy
from innervoice.runtime.scheduler.policy import FixedPolicy, Policy
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.slack import SlackPolicy

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {policy.name: policy for policy in (SlackPolicy(), FixedPolicy(), Policy())}
)


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings(PlanConstants):
    """A policy and the constants that it plans with. policy: an object, or the name of one in `POLICIES`.

    `slack` (default): earliest playback deadline first. `fixed`: arrival order, at most `fixed_hidden` tokens
    a reflection. `fcfs`: arrival order, no cap but the schedule's. Raises ValueError for an unknown name and
    for constants out of range.
    """

    policy: Policy | str = "slack"

    def __post_init__(self) -> None:
        super().__post_init__()
        is_known = (
            self.policy in POLICIES if isinstance(self.policy, str) else isinstance(self.policy, Policy)
        )
        if not is_known:
            raise ValueError(f"policy is {self.policy!r}: use {', '.join(POLICIES)}, or a Policy")

    @cached_property
    def planner(self) -> Policy:
        """The policy itself; one that is not of this package has its answers checked."""
        policy = POLICIES[self.policy] if isinstance(self.policy, str) else self.policy
        is_own = any(type(policy) is type(own) for own in POLICIES.values())
        return policy if is_own else CheckedPolicy(policy)
