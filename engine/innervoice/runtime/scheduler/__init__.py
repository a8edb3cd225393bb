"""The scheduler: replies of the next step, what each may reflect, and whose sound is made.

No torch, no clock.

admission.py       the replies that get pages, and those whose pages are taken back
checked_policy.py  a policy from outside, every answer checked
codec_plan.py      the codec's next call
costs.py           durations of steps, prompt tokens and codec calls, learned while they run
deadlines.py       each reply's next deadline; reflection caps by it; the replies that draw
draft.py           a step as a policy wants it, before pages are counted
forecast.py        the first sound of one more question
policies.py        the policies by name; SchedulerSettings
policy.py          the interface of a policy, and the two that go by arrival
settings.py        the constants that policies plan with
slack.py           the policy `slack`: earliest playback deadline first
step_plan.py       the next step, whole
table.py           the table of replies that plans read, a numpy column a fact
"""

from innervoice.runtime.scheduler.checked_policy import PolicyError
from innervoice.runtime.scheduler.codec_plan import VoicePlan
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.forecast import Forecast, forecast
from innervoice.runtime.scheduler.policies import POLICIES, SchedulerSettings
from innervoice.runtime.scheduler.policy import Policy
from innervoice.runtime.scheduler.step_plan import StepPlan, plan_step, plan_voice
from innervoice.runtime.scheduler.table import Phase, ReplyColumns, TableIndices

__all__ = [
    "POLICIES",
    "Forecast",
    "LearnedCosts",
    "Phase",
    "Policy",
    "PolicyError",
    "ReplyColumns",
    "SchedulerSettings",
    "StepPlan",
    "TableIndices",
    "VoicePlan",
    "forecast",
    "plan_step",
    "plan_voice",
]
