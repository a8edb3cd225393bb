"""Which replies take part in the next step, how much each may reflect, and whose sound is made. No torch, no clock."""

from innervoice.scheduler.costs import LearnedCosts
from innervoice.scheduler.jobs import Jobs, Phase, Places
from innervoice.scheduler.plan import StepPlan, plan_step
from innervoice.scheduler.settings import Policy, SchedulerSettings
from innervoice.scheduler.voice import VoicePlan, plan_voice

__all__ = [
    "Jobs",
    "LearnedCosts",
    "Phase",
    "Places",
    "Policy",
    "SchedulerSettings",
    "StepPlan",
    "VoicePlan",
    "plan_step",
    "plan_voice",
]
