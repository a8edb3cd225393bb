"""Figures and traces of a running engine.

histogram.py   values by size, their mean and quantiles
metrics.py     the arrivals that a listener got, as the figures by which engines are compared
prometheus.py  an engine's figures for Prometheus; prometheus-client is optional
stats.py       counters, gauges and histograms of an engine, and a snapshot of them
trace.py       spans and counters as Chrome trace JSON, on a switch
"""
