"""Sessions that outlive their replica, and the directory that knows them; `make ray` runs them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray_cluster import (
    PATIENCE_S,
    TEXTS,
    Caller,
    Cluster,
    replicas_in_figures,
    running_cluster,
    wait_for,
)

pytestmark = pytest.mark.slow
ALIKE_S = 0.15  # by which the longest gaps of two runs differ on cores that are all taken; a stopped reply lacks seconds


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


class Talk:
    """A caller who asks on and on, each time once the answer was heard.

    sounds: of the answers. gaps: when the end of each came, and the longest gap in it.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.sounds: list[bytes] = []
        self.gaps: list[tuple[float, float]] = []

    def run(self, is_over: threading.Event) -> None:
        while len(self.sounds) < 2 or not is_over.is_set():
            self.sounds.append(self._caller.turn(TEXTS[len(self.sounds) % len(TEXTS)]))
            self.gaps.append((time.monotonic(), self._caller.gap_s))
            time.sleep(max(0.0, self._caller.played_s - time.monotonic()))

    def longest_s(self, since_s: float, until_s: float) -> float:
        """The longest gap in the answers that ended in a time."""
        return max((gap_s for end_s, gap_s in self.gaps if since_s <= end_s < until_s), default=0.0)


def start_an_engine(model: Path) -> None:
    """Have a process do what a starting replica does, and wait for its end."""
    code = "import sys, ray.serve; from innervoice import Engine; Engine.from_pretrained(sys.argv[1], device='cpu').close()"
    subprocess.run([sys.executable, "-c", code, str(model)], check=True, timeout=PATIENCE_S)


def has_two_without(client: httpx2.Client, lost: str) -> bool:
    """Whether two replicas are in the figures, and a lost one is not."""
    names = replicas_in_figures(client)
    return len(names) == 2 and lost not in names


def ask_again(client: httpx2.Client, chats: list[list[dict[str, object]]]) -> list[object]:
    """Ask one question after each of the earlier answers -> what is answered."""
    asked = [[*messages, {"role": "user", "content": "Yes?"}] for messages in chats]
    return [chat(client, messages)["choices"][0]["message"]["content"] for messages in asked]


def test_a_replica_that_dies_loses_the_replies_in_flight_alone(cluster: Cluster, tiny_dir: Path) -> None:
    """The others are heard as without the death, until another replica has the place.

    The new replica takes the cores that the others compute with. So the reference is the same callers and the same
    questions beside a process that starts an engine, and no death: by more than ALIKE_S no gap may be longer.
    """
    cluster.deploy(2)
    settled(cluster)
    client = cluster.client()
    chats = [begin_chat(client) for _ in range(6)]
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
    talks = [Talk(caller) for caller in others]
    with ThreadPoolExecutor(len(others) + 1) as threads:
        runs = [threads.submit(talk.run, is_over) for talk in talks]
        try:
            begun_s = time.monotonic()
            start = threads.submit(start_an_engine, tiny_dir)
            expected = ask_again(client, chats)
            start.result()
            time.sleep(2.0)
            for caller in lost:
                caller.ask(TEXTS[1])
            died_s = time.monotonic()
            cluster.kill(homes[0])
            assert ask_again(client, chats) == expected, "by whoever is left"
            assert [caller.closed() for caller in lost] == [1006] * len(lost)
            wait_for(lambda: has_two_without(client, homes[0]))
            time.sleep(2.0)
        finally:
            is_over.set()
        for run in runs:
            run.result()
    assert all(talk.sounds[0] == first[0] for talk in talks)
    usual_s = max(talk.longest_s(begun_s, died_s) for talk in talks)
    assert max(talk.longest_s(died_s, math.inf) for talk in talks) <= usual_s + ALIKE_S, (
        f"{[talk.gaps for talk in talks]}, the death at {died_s}"
    )
    for caller in lost:
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        assert again.turn(TEXTS[1]) == talks[0].sounds[1]
        again.hang_up()
    hang_up(others)


def test_a_directory_that_is_started_anew_knows_all_sessions_soon(cluster: Cluster) -> None:
    secret = cluster.secret()
    callers = [Caller(cluster.port) for _ in range(4)]
    first = {caller.turn(TEXTS[0]) for caller in callers}
    messages = begin_chat(cluster.client())
    keys = [*(caller.token for caller in callers), messages[1]["audio"]["id"]]
    homes = cluster.homes(keys)
    cluster.restart_directory()
    assert cluster.secret() == secret, "client secrets of before are good"
    assert cluster.homes(keys) == homes, "every replica has noticed, and saved them again"
    assert chat(cluster.client(), [*messages, {"role": "user", "content": "Yes?"}])["choices"]
    next_one = set()
    for caller in callers:
        caller.vanish()
        again = Caller(cluster.port, resume=caller.token)
        assert again.session["id"] == caller.session["id"]
        next_one.add(again.turn(TEXTS[1]))
        again.hang_up()
    assert len(first) == len(next_one) == 1
