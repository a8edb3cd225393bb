"""Figures and traces of what the engine does.

metrics.py     what a listener got to the figures by which engines are compared
prometheus.py  the same for Prometheus; prometheus-client is optional
stats.py       what an engine counts: histograms, counters, a snapshot
trace.py       spans and counters as Chrome trace JSON, on a switch
"""
