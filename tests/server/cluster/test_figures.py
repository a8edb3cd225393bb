from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from innervoice.server.cluster.figures import with_replicas


def figures(number: int) -> str:
    registry = CollectorRegistry()
    Gauge("sessions", "Open.", ["dialect"], registry=registry).labels("ga").set(number)
    Counter("refused", "Refused.", registry=registry).inc(number)
    Histogram("wait_seconds", "Waits.", buckets=(0.1, 1.0), registry=registry).observe(0.5)
    return generate_latest(registry).decode()


def test_samples_keep_their_values_and_get_a_label() -> None:
    text = with_replicas({"a": figures(2), "b": figures(3)}).decode()
    lines = [line for line in text.splitlines() if "_created" not in line]
    assert 'sessions{dialect="ga",replica="a"} 2.0' in lines
    assert 'sessions{dialect="ga",replica="b"} 3.0' in lines
    assert 'refused_total{replica="b"} 3.0' in lines
    assert 'wait_seconds_bucket{le="1.0",replica="a"} 1.0' in lines
    for head in ("# TYPE sessions gauge", "# TYPE refused_total counter", "# TYPE wait_seconds histogram"):
        assert lines.count(head) == 1


def test_nothing_of_one_replica_is_lost() -> None:
    text = figures(4)
    joined = with_replicas({"a": text}).decode()
    own, plain = ([line for line in one.splitlines() if not line.startswith("#")] for one in (joined, text))
    assert sorted(_without_label(line) for line in own) == sorted(plain)


def _without_label(line: str) -> str:
    return line.replace(',replica="a"', "").replace('{replica="a"}', "").replace('replica="a",', "")
