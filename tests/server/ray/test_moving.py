"""Sessions that outlive their replica, and the directory that knows them; `make ray` runs them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray_cluster import TEXTS, Caller, Cluster, replicas_in_figures, running_cluster, wait_for

pytestmark = pytest.mark.slow


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


def begin_chat(client: httpx2.Client) -> list[dict[str, object]]:
    """Ask for an answer with sound -> the messages with it."""
    messages: list[dict[str, object]] = [{"role": "user", "content": TEXTS[0]}]
    made = chat(client, messages)
    return [*messages, {"role": "assistant", "audio": {"id": made["choices"][0]["message"]["audio"]["id"]}}]


def chat(client: httpx2.Client, messages: list[dict[str, object]]) -> dict[str, object]:
    body = {
        "model": "tiny", "messages": messages, "modalities": ["text", "audio"], "temperature": 0,
        "audio": {"voice": "default", "format": "wav"}, "max_completion_tokens": 20,
    }  # fmt: skip
    response = client.post("/v1/chat/completions", content=json.dumps(body))
    assert response.status_code == 200, response.text
    return response.json()


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


def talk_on(caller: Caller, is_over: threading.Event) -> tuple[list[bytes], list[float]]:
    """Ask on and on, each time once the answer was heard -> the sound of each, and the longest gap in it."""
    sounds, gaps_s = [], []
    while len(sounds) < 2 or not is_over.is_set():
        sounds.append(caller.turn(TEXTS[len(sounds) % len(TEXTS)]))
        gaps_s.append(caller.gap_s)
        time.sleep(max(0.0, caller.played_s - time.monotonic()))
    return sounds, gaps_s


def has_two_without(client: httpx2.Client, lost: str) -> bool:
    """Whether two replicas are in the figures, and a lost one is not."""
    names = replicas_in_figures(client)
    return len(names) == 2 and lost not in names


def test_a_replica_that_dies_loses_the_replies_in_flight_alone(cluster: Cluster) -> None:
    """The others are heard without a gap, from before the death until another replica has the place."""
    cluster.deploy(2)
    settled(cluster)
    chats = [begin_chat(cluster.client()) for _ in range(6)]
    expected = [
        chat(cluster.client(), [*messages, {"role": "user", "content": "Yes?"}]) for messages in chats
    ]
    callers = [Caller(cluster.port) for _ in range(4)]
    homes = cluster.homes(caller.token for caller in callers)
    assert len(set(homes)) == 2
    lost = [caller for caller, home in zip(callers, homes, strict=True) if home == homes[0]]
    others = [caller for caller in callers if caller not in lost]
    first = [caller.turn(TEXTS[0]) for caller in lost]
    num, num_bytes = cluster.saved_bytes()
    assert num >= 4
    assert num_bytes / num < 40_000
    is_over = threading.Event()
    with ThreadPoolExecutor(len(others)) as threads:
        talks = [threads.submit(talk_on, caller, is_over) for caller in others]
        time.sleep(2.0)
        for caller in lost:
            caller.ask(TEXTS[1])
        cluster.kill(homes[0])
        client = cluster.client()
        for messages, before in zip(chats, expected, strict=True):  # by whoever is left
            made = chat(client, [*messages, {"role": "user", "content": "Yes?"}])
            assert made["choices"][0]["message"]["content"] == before["choices"][0]["message"]["content"]
        assert [caller.closed() for caller in lost] == [1006] * len(lost)
        wait_for(lambda: has_two_without(client, homes[0]))
        time.sleep(2.0)
        is_over.set()
        heard = [talk.result() for talk in talks]
    assert all(sounds[0] == first[0] for sounds, _ in heard)
    assert [max(gaps_s) for _, gaps_s in heard] == [0.0] * len(others), heard[0][1]
    for caller in lost:
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        assert again.turn(TEXTS[1]) == heard[0][0][1]
        again.hang_up()
    hang_up(others)


def test_a_directory_that_is_started_anew_knows_all_sessions_soon(cluster: Cluster) -> None:
    secret = cluster.secret()
    callers = [Caller(cluster.port) for _ in range(4)]
    first = {caller.turn(TEXTS[0]) for caller in callers}
    [messages] = [begin_chat(cluster.client())]
    homes = cluster.homes(caller.token for caller in callers)
    cluster.restart_directory()
    assert cluster.secret() == secret, "client secrets of before are good"
    wait_for(lambda: cluster.saved_bytes()[0] >= len(callers) + 1)
    assert cluster.homes(caller.token for caller in callers) == homes
    assert chat(cluster.client(), [*messages, {"role": "user", "content": "Yes?"}])["choices"]
    next_one = set()
    for caller in callers:
        caller.vanish()
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        next_one.add(again.turn(TEXTS[1]))
        again.hang_up()
    assert len(first) == len(next_one) == 1
