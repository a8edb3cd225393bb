"""Which replies take part in the next step, how much each may reflect, and whose sound is made. No torch, no clock.

admission.py   who gets a row, and whose pages are taken back
codec_plan.py  whose sound the codec makes now
costs.py       how long a step, a prompt token and a codec call take, learned
deadlines.py   how soon each must have its next sound; reflection caps; who draws
settings.py    SchedulerSettings: the policy and its constants
step_plan.py   the next step, whole
table.py       what is known of every reply, a numpy column a fact
"""

from innervoice.runtime.scheduler.codec_plan import VoicePlan, plan_voice
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.settings import Policy, SchedulerSettings
from innervoice.runtime.scheduler.step_plan import StepPlan, plan_step
from innervoice.runtime.scheduler.table import Phase, Places, ReplyColumns

__all__ = [
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
