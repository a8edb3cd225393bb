"""Callers of any server of OpenAI's Realtime protocol, who speak, listen and interrupt in real time.

call.py        one caller's conversation
crowd.py       many callers in one event loop
dialect.py     general availability and beta: names and shapes that differ
figures.py     first sound, underruns, interruptions, errors and own lag, from the logs
labels.py      figures as they are shown
microphone.py  frames of sound on a clock
recordings.py  recordings as frames, encoded beforehand
records.py     the record of a run, in the benchmarks' form
reply.py       a reply as it arrives, and its playback
report/        a page with plots
settings.py    the server, the number of callers, and how they behave
turn.py        a question with its reply, and the log of a call
wire.py        a connection, and the reasons for which there is none
"""

from innervoice.tools.realtime_bench.crowd import CrowdLog, hold_calls
from innervoice.tools.realtime_bench.figures import RealtimeFigures, figures_of
from innervoice.tools.realtime_bench.recordings import Recording, bundled_recordings, read_recordings
from innervoice.tools.realtime_bench.records import records_of
from innervoice.tools.realtime_bench.settings import CallSettings

__all__ = [
    "CallSettings",
    "CrowdLog",
    "RealtimeFigures",
    "Recording",
    "bundled_recordings",
    "figures_of",
    "hold_calls",
    "read_recordings",
    "records_of",
]
