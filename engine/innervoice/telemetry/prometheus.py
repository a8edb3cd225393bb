"""An engine's figures for Prometheus, through prometheus-client (the extra `metrics`), in the caller's own registry."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from innervoice.telemetry.stats import Histogram, Reading, Telemetry

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

PREFIX = "innervoice_"


def make_collector(*engines: Telemetry) -> Collector:
    """What `CollectorRegistry.register` takes: every family once, each engine under its own label `engine`.

    Engines that share a registry share a collector; each may as well have a registry of its own. Raises ValueError for two
    engines of one name, ImportError where prometheus-client is not installed.
    """
    try:
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ImportError("prometheus-client is not installed: pip install 'innervoice[metrics]'") from error
    names = [engine.name for engine in engines]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two engines are named {max(names, key=names.count)!r}: give each a name of its own"
        )

    class EngineCollector(Collector):
        """Reads the engines whenever the registry is."""

        def collect(self) -> Iterable[Metric]:
            return _families([(engine.name, engine.readings()) for engine in engines])

        def describe(self) -> Iterable[Metric]:
            return _families([(engine.name, engine.readings()) for engine in engines])

    return EngineCollector()


def _families(engines: list[tuple[str, list[Reading]]]) -> list[Metric]:
    made: dict[str, Metric] = {}
    for engine, readings in engines:
        for reading in readings:
            if reading.name not in made:
                made[reading.name] = _empty(reading)
            _fill(made[reading.name], reading, engine)
    return list(made.values())


def _empty(reading: Reading) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    family = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[
        reading.kind
    ]
    labels = ["engine"] if reading.label is None else ["engine", reading.label]
    made: Metric = family(PREFIX + reading.name, reading.help, labels=labels)
    return made


def _fill(family: Metric, reading: Reading, engine: str) -> None:
    for key, value in reading.values.items():
        told = [engine] if reading.label is None else [engine, key]
        if isinstance(value, Histogram):
            bounds = [*(f"{bound:g}" for bound in value.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(value.counts), strict=True))
            family.add_metric(told, buckets=buckets, sum_value=value.sum)  # type: ignore[attr-defined]
        else:
            family.add_metric(told, value)  # type: ignore[attr-defined]
