"""The report of a run: one HTML file with its plots, which loads nothing.

charts.py    distributions of figures, and underruns call by call
page.py      figures, plots and settings in the template
playback.py  when each part of a reply was heard
svg.py       shapes, scales and axes
timeline.py  one call: questions, chunks, reserve and playback over time
"""

from innervoice.tools.realtime_bench.report.page import written_report

__all__ = ["written_report"]
