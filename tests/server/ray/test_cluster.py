"""Replicas of the server on Ray Serve, on this machine, with the packaged tiny checkpoint; `make ray` runs them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray_cluster import Caller, Cluster, running_cluster

pytestmark = pytest.mark.slow
TEXTS = ("What is the weather like?", "And tomorrow?", "Thank you.")


@pytest.fixture(scope="module")
def cluster(tiny_dir: Path) -> Iterator[Cluster]:
    with running_cluster(tiny_dir) as made:
        made.deploy(2)
        yield made


def hang_up(callers: list[Caller]) -> None:
    for caller in callers:
        caller.hang_up()


def settled(cluster: Cluster) -> None:
    """Wait for the replicas' next reports."""
    time.sleep(2.0)
    assert cluster.client().get("/ready").status_code == 200


def test_all_replicas_are_in_the_figures(cluster: Cluster) -> None:
    client = cluster.client()
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        lines = [line for line in client.get("/metrics").text.splitlines() if 'replica="' in line]
        names = {line.split('replica="')[1].split('"')[0] for line in lines}
        if len(names) == 2:
            break
        time.sleep(0.5)
    assert len(names) == 2
    for name in names:
        trace = client.get("/trace", params={"replica": name, "seconds": 0.2}).json()
        assert "traceEvents" in trace
    assert client.get("/trace", params={"replica": "none"}).status_code == 400
    assert client.get("/trace", params={"seconds": "1e9"}).json()["error"]["param"] == "seconds"


def test_callers_are_spread_and_a_new_replica_takes_the_next(cluster: Cluster) -> None:
    callers = [Caller(cluster.port) for _ in range(16)]
    counts = Counter(cluster.homes(callers))
    assert len(counts) == 2
    assert max(counts.values()) - min(counts.values()) <= 1

    cluster.deploy(3)
    settled(cluster)
    more = [Caller(cluster.port) for _ in range(6)]
    assert len(set(cluster.homes(more))) == 1, "the emptiest takes all until it is as full"
    assert not set(cluster.homes(more)) & set(counts)
    for caller in callers + more:
        assert caller.turn(TEXTS[0])
    hang_up(callers + more)
    cluster.deploy(2)


def talk(client: httpx2.Client, number: int) -> list[int]:
    """Have a dialogue of three turns over chat completions -> the prompt tokens of each that were cached."""
    messages: list[dict[str, object]] = []
    cached = []
    for text in TEXTS:
        messages.append({"role": "user", "content": f"{text} {number}"})
        body = {
            "model": "tiny", "messages": messages, "modalities": ["text", "audio"], "temperature": 0,
            "audio": {"voice": "default", "format": "wav"}, "max_completion_tokens": 20,
        }  # fmt: skip
        response = client.post("/v1/chat/completions", content=json.dumps(body))
        assert response.status_code == 200, response.text
        made = response.json()
        messages.append({"role": "assistant", "audio": {"id": made["choices"][0]["message"]["audio"]["id"]}})
        cached.append(made["usage"]["prompt_tokens_details"]["cached_tokens"])
    return cached


def test_an_answer_goes_on_where_its_pages_are(cluster: Cluster) -> None:
    client = cluster.client()
    with ThreadPoolExecutor(6) as threads:
        cached = list(threads.map(partial(talk, client), range(200)))
    assert all(one[0] < one[1] < one[2] for one in cached)
    assert client.get("/ready").status_code == 200


def test_a_replica_that_goes_hands_its_sessions_over(cluster: Cluster) -> None:
    stayed = Caller(cluster.port)
    expected = [stayed.turn(text) for text in TEXTS]
    stayed.hang_up()
    cluster.deploy(1)
    settled(cluster)
    idle = [Caller(cluster.port) for _ in range(8)]
    speaking = [Caller(cluster.port) for _ in range(4)]
    for caller in idle + speaking:
        assert caller.turn(TEXTS[0]) == expected[0]
    for caller in speaking:
        caller.ask(TEXTS[1])
    cluster.deploy(1, drain_s=60.0)  # a changed option: another replica takes this one's place
    for caller in speaking:
        assert caller.answer() == expected[1], "it is played to its end"
    assert [caller.closed() for caller in idle + speaking] == [1001] * 12
    again = [Caller(cluster.port, resume=caller.token) for caller in idle]
    for before, caller in zip(idle, again, strict=True):
        assert caller.session["id"] == before.session["id"]
        assert caller.turn(TEXTS[1]) == expected[1]
    hang_up(again)


def test_a_replica_that_dies_loses_the_replies_in_flight_alone(cluster: Cluster) -> None:
    cluster.deploy(2)
    settled(cluster)
    callers = [Caller(cluster.port) for _ in range(4)]
    first = [caller.turn(TEXTS[0]) for caller in callers]
    assert len(set(first)) == 1
    homes = cluster.homes(callers)
    assert len(set(homes)) == 2
    num, num_bytes = cluster.saved_bytes()
    assert num >= 4
    assert num_bytes / num < 40_000
    cluster.kill(cluster.replica_pids()[0])
    alive = {}
    for caller in callers:  # those of the dead replica are cut off, the others hear an answer
        with suppress(ConnectionClosed):
            caller.ask(TEXTS[1])
    expected = b""
    for caller in callers:
        with suppress(ConnectionClosed):
            alive[caller.token] = expected = caller.answer()
    dead = [caller for caller in callers if caller.token not in alive]
    assert len(alive) == len(dead) == 2
    assert {home for caller, home in zip(callers, homes, strict=True) if caller in dead} != set(homes)
    for caller in dead:
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        assert again.turn(TEXTS[1]) == expected
        again.hang_up()
