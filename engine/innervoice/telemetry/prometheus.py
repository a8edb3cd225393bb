"""An engine's figures for Prometheus, through prometheus-client (the extra `metrics`), in the caller's own
registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from innervoice.telemetry.histogram import Histogram
from innervoice.telemetry.stats import Reading, Telemetry

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

PREFIX = "innervoice_"


def make_collector(engine: Telemetry) -> Collector:
    """Make an argument for `CollectorRegistry.register`: every family, labelled with the engine's name.

    Each engine has a registry of its own, since a registry takes a family once. Raises ImportError where
    prometheus-client is not installed.
    """
    try:
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ImportError("prometheus-client is not installed: pip install 'innervoice[metrics]'") from error

    class EngineCollector(Collector):
        """Reads the engine whenever the registry is read."""

        def collect(self) -> Iterable[Metric]:
            return [_family(reading, engine.name) for reading in engine.readings()]

        def describe(self) -> Iterable[Metric]:
            return self.collect()

    return EngineCollector()


def _family(reading: Reading, engine: str) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    names = ["engine"] if reading.label is None else ["engine", reading.label]
    family: Metric = kinds[reading.kind](PREFIX + reading.name, reading.help, labels=names)
    for key, value in reading.values.items():
        labels = [engine] if reading.label is None else [engine, key]
        if isinstance(value, Histogram):
            bounds = [*(f"{bound:g}" for bound in value.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(value.counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=value.sum)  # type: ignore[attr-defined]
        else:
            family.add_metric(labels, value)  # type: ignore[attr-defined]
    return family
