"""The figures of all replicas as one text for Prometheus, with the label `replica`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Figures(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        made: dict[tuple[str, str], Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                key = (family.name, family.type)
                one = made.setdefault(key, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {"replica": replica, **sample.labels}
                    one.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
        yield from made.values()


def with_replicas(texts: Mapping[str, str]) -> bytes:
    """Join the texts of replicas, by name; each sample gets the label `replica`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(texts))
    return generate_latest(registry)
