"""Which replies take part in the next step, how much each may reflect, and whose sound is made. No torch, no clock.

admission.py   the replies that get pages, and those whose pages are taken back
codec_plan.py  the codec's next call
costs.py       how long a step, a prompt token and a codec call take, learned
deadlines.py   how soon each must have its next sound; reflection caps; who draws
draft.py       a step as a policy wants it, before pages are counted
policies.py    the policies by name; SchedulerSettings
policy.py      the interface of a policy, and the two that go by arrival
settings.py    the constants that policies plan with
slack.py       the policy `slack`: earliest playback deadline first
step_plan.py   the next step, whole
table.py       what is known of every reply, a numpy column a fact
"""

from innervoice.runtime.scheduler.codec_plan import VoicePlan
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.policies import POLICIES, SchedulerSettings
from innervoice.runtime.scheduler.policy import Policy
from innervoice.runtime.scheduler.step_plan import StepPlan, plan_step, plan_voice
from innervoice.runtime.scheduler.table import Phase, Places, ReplyColumns

__all__ = [
    "POLICIES",
    "LearnedCosts",
    "Phase",
    "Places",
    "Policy",
    "ReplyColumns",
    "SchedulerSettings",
    "StepPlan",
    "VoicePlan",
    "plan_step",
    "plan_voice",
]
