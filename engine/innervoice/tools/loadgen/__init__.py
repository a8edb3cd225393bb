"""Callers who ask, listen in real time, and write down what they got.

callers.py    many callers in one event loop, at random times or in dialogues
player.py     a player in real time that counts how often it runs dry
questions.py  what they ask: a manifest, or the packaged recordings
"""

from innervoice.tools.loadgen.callers import Listened, Load, Run, converse, run_load
from innervoice.tools.loadgen.player import Player
from innervoice.tools.loadgen.questions import Question, bundled_questions, read_manifest

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
