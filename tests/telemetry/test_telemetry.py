"""What an engine counts, against the figures of metrics.py, and as Prometheus reads it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from innervoice.telemetry.histogram import Histogram
from innervoice.telemetry.metrics import RequestTimings, measure
from innervoice.telemetry.prometheus import make_collector
from innervoice.telemetry.stats import FIGURES, MEASURES, Occupancy, Stats, Telemetry
from innervoice.types import AudioChunk, Done, End, Event, Reflection, Speech, Transcript, Usage

RATE = 1000


def reply(reply_id: str, seed: int) -> list[Event]:
    """A reply of random tokens and chunks."""
    rng, t, events = random.Random(seed), 0.0, list[Event]()
    for number in range(rng.randrange(2, 40)):
        t += rng.random() / 10
        common = {"reply_id": reply_id, "index": number, "t": t}
        kind = rng.choice([Reflection, Transcript, Speech, AudioChunk])
        if kind is AudioChunk:
            events.append(
                AudioChunk(**common, pcm=np.zeros(rng.randrange(1, 300), np.float32), rate=RATE, start=0)
            )
        else:
            codes = {"codes": np.zeros(1, np.int32)} if kind is Speech else {}
            events.append(kind(**common, segment=0, ids=[1] * rng.randrange(1, 3), **codes))
    events.append(End(reply_id=reply_id, index=98, t=t, segment=1, ids=[9]))
    usage = Usage(prompt_tokens=10, cached_tokens=seed % 10)
    return [
        *events,
        Done(reply_id=reply_id, index=99, t=t, finish_reason="stop" if seed % 2 else "length", usage=usage),
    ]


def log_of(events: list[Event]) -> RequestTimings:
    return RequestTimings(
        submitted_s=0.0,
        rate=RATE,
        audio=tuple((e.t, len(e.pcm)) for e in events if isinstance(e, AudioChunk)),
        tokens=tuple((e.t, e.kind) for e in events if hasattr(e, "ids") for _ in e.ids),
    )


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_counts_are_the_figures_of_metrics(seed: int, num_replies: int) -> None:
    replies = [reply(str(i), seed + i) for i in range(num_replies)]
    telemetry, rng = Telemetry(), random.Random(seed)
    left, now = [list(events) for events in replies], 0.0
    while any(left):  # steps that hand over events of several replies
        now += 0.01
        telemetry.events(
            [e for one in left for e in (one.pop(0) for _ in range(min(len(one), rng.randrange(3))))], now
        )
    made, stats = [measure(log_of(events)) for events in replies], telemetry.stats()
    with_sound = [one for one in made if one.audio_s]
    assert stats.ttfa_ms.n == stats.first_chunk_s.n == stats.reflection_per_audio_s.n == len(with_sound)
    if with_sound:
        assert stats.ttfa_ms.mean == pytest.approx(np.mean([one.audio_ttfp_ms for one in with_sound]))
        assert stats.reflection_per_audio_s.mean == pytest.approx(
            np.mean([one.reflection_per_audio_s for one in with_sound])
        )
    measured = [one.underruns for one in made if one.underruns.is_measured]
    assert stats.underrun_s.n == len(measured) and stats.num_underruns == sum(u.count for u in measured)
    assert stats.audio_s == pytest.approx(sum(one.audio_s for one in made))
    assert sum(stats.tokens.values()) == sum(one.tokens.n for one in made)
    assert sum(stats.replies.values()) == num_replies and stats.prompt_tokens == 10 * num_replies
    assert telemetry._open == {}
    json.dumps(stats.to_dict())
    assert pickle.loads(pickle.dumps(stats)) == stats


@settings(deadline=None)
@given(st.lists(st.floats(0, 40), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_its_bucket(values: list[float], share: float) -> None:
    bounds = (0.0, 0.5, 1.0, 5.0, 10.0, 50.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    found = histogram.quantile(share)
    low = max((b for b in bounds if b < exact), default=0.0)
    high = min(b for b in bounds if b >= exact)
    assert found is not None and low - 1e-9 <= found <= high + 1e-9
    assert histogram.n == len(values) and histogram.sum == pytest.approx(sum(values))


def test_an_empty_histogram_and_what_is_no_number() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(float("nan"))
    assert histogram.n == 0 and histogram.quantile(0.5) is None
    histogram.observe(5.0)
    assert histogram.quantile(0.5) == 2.0 and histogram.counts == [0, 0, 1]


def token(number: int) -> Event:
    return Transcript(reply_id="r", index=number, t=0.0, segment=0, ids=[1])


def test_the_rate_is_of_the_last_ten_seconds() -> None:
    telemetry = Telemetry()
    assert telemetry.stats().decode_tok_s == 0.0
    for second in range(5):
        telemetry.events([token(i) for i in range(20)], float(second))
    assert telemetry.stats(now=5.0).decode_tok_s == pytest.approx(20)
    for second in range(5, 30):
        telemetry.events([token(0)], float(second))
    assert telemetry.stats(now=30.0).decode_tok_s == pytest.approx(1)
    assert telemetry.stats(now=100.0).decode_tok_s == 0.0
    assert len(telemetry._recent) <= 11


def busy(name: str, number: int) -> Telemetry:
    telemetry = Telemetry(name)
    telemetry.events(reply("r", number), 1.0)
    telemetry.step(0.004, rows=number)
    telemetry.codec(0.02)
    telemetry.count("preempted")
    telemetry.count("refused", 2)
    telemetry.note(mbu=0.7, jit_after_warmup=1)
    telemetry.occupy(
        Occupancy(
            running=3, waiting=4, sessions=2, pages=100, pages_free=60, pages_cached=20, slots=8, slots_used=3
        )
    )
    return telemetry


def values(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """(name with its labels other than engine, engine) -> value, as a Prometheus server reads it."""
    text = generate_latest(registry).decode()
    assert text.count("# TYPE") == len(
        {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    )
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {}
    for sample in samples:
        labels = {k: v for k, v in sample.labels.items() if k != "engine"}
        found[sample.name + "".join(f",{k}={v}" for k, v in labels.items()), sample.labels["engine"]] = (
            sample.value
        )
    return found


@pytest.mark.parametrize("number", [3, 5])
def test_a_registry_has_the_figures_of_stats(number: int) -> None:
    telemetry, registry = busy("one", number), CollectorRegistry()
    registry.register(make_collector(telemetry))
    found, stats = (
        {name: value for (name, engine), value in values(registry).items() if engine == "one"},
        telemetry.stats(),
    )
    assert found["innervoice_pages,state=free"] == 60 and found["innervoice_pages,state=held"] == 40
    assert found["innervoice_queue"] == 4 and found["innervoice_slots,state=used"] == 3
    assert found["innervoice_incidents_total,what=refused"] == 2
    assert found["innervoice_replies_total,reason=stop"] == 1
    for kind, count in stats.tokens.items():
        assert found[f"innervoice_tokens_total,kind={kind}"] == count
    for one in MEASURES:
        assert found[f"innervoice_{one.name}_count"] == getattr(stats, one.field).n
    assert (
        found["innervoice_step_seconds_bucket,le=0.005"]
        == 1
        == found["innervoice_step_seconds_bucket,le=+Inf"]
    )
    assert found["innervoice_step_seconds_bucket,le=0.003"] == 0
    assert found["innervoice_step_seconds_sum"] == pytest.approx(0.004)


def test_every_figure_is_read_off_a_snapshot() -> None:
    stats = busy("one", 3).stats()
    spreads = {f.name for f in dataclasses.fields(Stats) if f.type == "Spread"}
    assert {one.field for one in MEASURES} == spreads
    for figure in FIGURES:
        assert figure.read(stats) and (figure.label is None) == (list(figure.read(stats)) == [""])


def test_two_engines_in_two_registries() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    for number, registry in enumerate(registries):
        registry.register(make_collector(busy("engine", 2 + number)))
    first, second = map(values, registries)
    assert (
        first["innervoice_batch_rows_sum", "engine"] == 2
        and second["innervoice_batch_rows_sum", "engine"] == 3
    )


def test_an_engine_that_has_done_nothing_beside_one_that_has() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    for registry, telemetry in zip(registries, [Telemetry("idle"), busy("busy", 3)], strict=True):
        registry.register(make_collector(telemetry))
    found = values(registries[0]) | values(registries[1])
    assert (
        found["innervoice_running", "idle"] == 0
        and found["innervoice_incidents_total,what=preempted", "busy"] == 1
    )
    assert not any(name.startswith("innervoice_tokens") for name, engine in found if engine == "idle")


def test_a_second_engine_in_a_registry_is_refused() -> None:
    registry = CollectorRegistry()
    registry.register(make_collector(Telemetry("one")))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(make_collector(Telemetry("two")))


def test_stats_are_readable() -> None:
    lines = str(busy("one", 3).stats()).splitlines()
    assert any(line.split() == ["occupancy.pages_free", "60"] for line in lines)
    assert any(line.split() == ["step_ms.n", "1"] for line in lines) and any(
        line.split() == ["mbu", "0.7"] for line in lines
    )
    assert not any("{" in line for line in lines)
