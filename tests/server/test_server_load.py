"""A server with callers of a process of their own: the event loop never stalls, and nothing is left of rough callers."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TESTS
from small_servers import KEY, RunningServer, running_server, wait_until

from innervoice import Engine
from innervoice.server.process import SWITCH_S

MAX_SESSIONS = 24


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    options = {"max_sessions": MAX_SESSIONS, "max_model_len": 1024}
    with Engine.from_pretrained(tiny_dir, device="cpu", **options) as made:
        yield made


@pytest.fixture
def server(engine: Engine) -> Iterator[RunningServer]:
    with running_server(engine, vad="silero") as made:
        yield made


def call(server: RunningServer, num_callers: int, num_calls: int, *manner: str, seed: int = 1) -> Any:
    """Let callers call -> their tally."""
    url = server.base.replace("http", "ws") + "/v1/realtime"
    script = TESTS / "support" / "realtime_callers.py"
    words = [str(script), url, KEY, str(num_callers), str(num_calls), str(seed), *manner]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RUN = f"""
import runpy, sys
sys.path[:0] = {[path for path in sys.path if path]!r}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


CONTROL = """
import json, select, sys, time
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    due = time.perf_counter() + 0.005
    time.sleep(0.005)
    late.append(time.perf_counter() - due)
print(json.dumps(late))
"""


class LoopProbe:
    """How late the event loop of a server wakes a task that sleeps for 5 ms, again and again.

    A process that does nothing else is the control: it is late as often as the machine is busy with others.
    """

    def __init__(self, server: RunningServer) -> None:
        self._late_s: list[float] = []
        self._task = asyncio.run_coroutine_threadsafe(self._run(), server.loop)
        self._control = subprocess.Popen(
            [sys.executable, "-c", CONTROL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def _run(self) -> None:
        while True:
            due_s = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            self._late_s.append(time.perf_counter() - due_s)

    def p99(self) -> tuple[float, float]:
        """Seconds that 99 of 100 wakes are late at most: of the loop, and of the control."""
        self._task.cancel()
        shown, _ = self._control.communicate("stop")
        return float(np.quantile(self._late_s, 0.99)), float(np.quantile(json.loads(shown), 0.99))


@pytest.mark.slow
def test_the_event_loop_does_not_stall_under_sixteen_callers(server: RunningServer) -> None:
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)  # as the process of a server does
    try:
        probe = LoopProbe(server)
        tally = call(server, 16, 2)
        loop_s, machine_s = probe.p99()
    finally:
        sys.setswitchinterval(switch_s)
    assert set(tally["ends"]) <= {"completed", "incomplete"}, tally["ends"]
    assert sum(tally["ends"].values()) == 32
    assert loop_s <= 0.010 + machine_s, (
        f"{1e3 * loop_s:.1f} ms, of which the machine's {1e3 * machine_s:.1f} ms"
    )


def resident_mb() -> float:
    """Megabytes of memory that this process holds, without what its allocator only keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def num_tasks(server: RunningServer) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), server.loop).result(10)


def assert_nothing_is_left(server: RunningServer, num_tasks_before: int, num_threads: int) -> None:
    """No session, page, reply, connection, lane, task or thread remains of calls that are over."""
    core = server.context.engine.parts.core
    wait_until(lambda: server.context.admission.num_held == 0, 60)
    wait_until(lambda: core.sessions.num_rows == 0, 60)
    wait_until(lambda: not server.context.live and len(server.context.resumable) == 0, 10)
    wait_until(lambda: num_tasks(server) <= num_tasks_before, 10)
    assert threading.active_count() <= num_threads


def soak(server: RunningServer, num_callers: int, num_calls: int) -> None:
    """Let rough callers call twice; caches (of torch's kernels by shape) may fill the first time."""
    call(server, 2, 1)
    before = call(server, 2, 3)["first_sound_s"]
    tasks, threads = num_tasks(server), threading.active_count()
    held_mb = []
    for seed in (1, 2):
        tally = call(server, num_callers, num_calls, "rough", seed=seed)
        assert sum(tally["ends"].values()) == num_callers * num_calls
        assert not {"TimeoutError", "failed"} & set(tally["ends"]), tally["ends"]
        assert_nothing_is_left(server, tasks, threads + MAX_SESSIONS)
        held_mb.append(resident_mb())
    assert held_mb[1] < held_mb[0] + 30, held_mb
    after = call(server, 2, 3)["first_sound_s"]
    assert np.median(after) < 2 * np.median(before) + 0.2


@pytest.mark.slow
def test_nothing_is_left_of_rough_callers(server: RunningServer) -> None:
    soak(server, 12, 3)


@pytest.mark.long
def test_nothing_is_left_of_two_thousand_sessions(server: RunningServer) -> None:
    soak(server, 20, 50)
