"""Callers who ask, listen in real time, and write down what they got."""

from innervoice.loadgen.callers import Listened, Load, Run, converse, run_load
from innervoice.loadgen.player import Player
from innervoice.loadgen.questions import Question, bundled_questions, read_manifest

__all__ = [
    "Listened",
    "Load",
    "Player",
    "Question",
    "Run",
    "bundled_questions",
    "converse",
    "read_manifest",
    "run_load",
]
