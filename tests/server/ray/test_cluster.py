"""Replicas of the server on Ray Serve, on this machine, with the packaged tiny checkpoint; `make ray` runs them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray_cluster import (
    TEXTS,
    Caller,
    Cluster,
    SpeakingCallers,
    replicas_in_figures,
    running_cluster,
    wait_for,
)

pytestmark = pytest.mark.slow
ENDS = {"completed", "incomplete"}  # at its end, or at its most tokens


@pytest.fixture(scope="module")
def cluster(tiny_dir: Path) -> Iterator[Cluster]:
    with running_cluster(tiny_dir) as made:
        made.deploy(2)
        yield made


def test_all_replicas_are_in_the_figures(cluster: Cluster) -> None:
    client = cluster.client()
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    wait_for(lambda: len(replicas_in_figures(client)) == 2)
    names = replicas_in_figures(client)
    caller = Caller(cluster.port)
    for name in names:
        trace = client.get("/trace", params={"replica": name, "seconds": 0.2}).json()
        assert "traceEvents" in trace
    home = cluster.homes([caller.token])[0]
    with ThreadPoolExecutor(1) as thread:
        traced = thread.submit(client.get, "/trace", params={"replica": home, "seconds": 3.0})
        time.sleep(0.5)
        assert caller.turn(TEXTS[0])
    names_of_spans = {event["name"] for event in traced.result().json()["traceEvents"]}
    assert len(names_of_spans) > 5, "the steps of that reply are in it"
    caller.hang_up()
    assert client.get("/trace", params={"replica": "none"}).status_code == 400
    assert client.get("/trace", params={"seconds": "1e9"}).json()["error"]["param"] == "seconds"


def test_callers_are_spread_and_a_new_replica_takes_the_next(cluster: Cluster) -> None:
    """Sixteen speak and listen in real time all the while."""
    time.sleep(2.0)  # reports without the callers of before
    with SpeakingCallers(cluster.port) as callers:
        counts = Counter(cluster.homes(callers.call(16)))
        assert len(counts) == 2
        assert max(counts.values()) - min(counts.values()) <= 1

        cluster.deploy(3)
        time.sleep(2.0)  # the new replica's first report
        more = cluster.homes(callers.call(6))
        assert len(set(more)) == 1, "the emptiest takes all until it is as full"
        assert not set(more) & set(counts)
        wait_for(lambda: all(callers.replies))
    assert all(callers.replies), "everybody was answered"
    assert {end for replies in callers.replies for end in replies} <= ENDS
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


def test_replies_call_for_a_replica_and_sessions_outlive_it(cluster: Cluster) -> None:
    scaling = {
        "min_replicas": 1, "max_replicas": 2, "initial_replicas": 1, "upscale_delay_s": 2.0, "downscale_delay_s": 8.0,
        "metrics_interval_s": 1.0, "look_back_period_s": 2.0,
        "policy": {
            "policy_function": "innervoice.server.ray.autoscaling:ByLoad",
            "policy_kwargs": {"running": 1.0, "first_audio_s": 60.0},
        },
    }  # fmt: skip
    cluster.deploy(1, scaling=scaling)
    with SpeakingCallers(cluster.port) as callers:
        callers.call(6, every_s=0.0)
        cluster.wait_for_replicas(2)
        stays = [Caller(cluster.port) for _ in range(4)]
        first = {caller.turn(TEXTS[0]) for caller in stays}
    assert {end for replies in callers.replies for end in replies} <= ENDS
    cluster.wait_for_replicas(1)
    second = set()
    for caller in stays:
        caller.vanish()
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        second.add(again.turn(TEXTS[1]))
        again.hang_up()
    assert len(first) == len(second) == 1
