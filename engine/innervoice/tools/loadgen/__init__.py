"""Callers who ask, hear the replies in real time, and write down when what arrived.

callers.py    many callers in one event loop, at random times or in sessions
hearing.py    one reply gathered as it arrives
load.py       how many requests arrive, and when
player.py     a player in real time that counts how often it runs dry
questions.py  questions from a manifest, or the packaged recordings
results.py    the replies that callers got
"""

from innervoice.tools.loadgen.callers import converse, run_load
from innervoice.tools.loadgen.load import Load
from innervoice.tools.loadgen.player import Player
from innervoice.tools.loadgen.questions import Question, bundled_questions, read_manifest
from innervoice.tools.loadgen.results import CallResult, LoadResult

__all__ = [
    "CallResult",
    "Load",
    "LoadResult",
    "Player",
    "Question",
    "bundled_questions",
    "converse",
    "read_manifest",
    "run_load",
]
