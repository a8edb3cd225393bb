"""Pieces of work side by side: order, failures, what runs where, and sound that does not depend on it."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice_kernels import _C
from innervoice_kernels.native import team, work_with
from innervoice_kernels.worker_pool import WorkerPool


@pytest.fixture(autouse=True)
def _own_context() -> None:
    """Whatever a test chooses to work with is gone after it: each sets its own."""
    work_with(_C.ThreadTeam(2))


def where(meet: threading.Barrier | None = None) -> tuple[str, int, int, bool]:
    if meet is not None:
        meet.wait(timeout=10)
    return (
        threading.current_thread().name,
        team().num_threads,
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),
    )


def test_pieces_run_at_once_on_threads_of_their_own() -> None:
    meet = threading.Barrier(2)  # nobody passes unless two are there
    with torch.inference_mode():
        made = WorkerPool().run([partial(where, meet), partial(where, meet)])
    assert len({name for name, *_ in made}) == 2
    assert [rest for _, *rest in made] == [[1, 1, True]] * 2


def test_threads_are_dealt_out() -> None:
    work_with(_C.ThreadTeam(5))
    assert [threads for _, threads, _, _ in WorkerPool().run([where] * 2)] == [2, 2]
    assert [threads for _, threads, _, _ in WorkerPool().run([where] * 5)] == [1, 1, 1, 1, 5]


def test_who_is_alone_runs_where_it_is_called() -> None:
    assert WorkerPool().run([]) == []
    here = threading.current_thread().name
    made = WorkerPool().run([where, where, where])
    assert made[2] == (here, 2, torch.get_num_threads(), False)
    assert here not in {made[0][0], made[1][0]}


def test_results_keep_their_order_and_a_failure_waits_for_its_neighbour() -> None:
    pool, ended = WorkerPool(), threading.Event()

    def fail() -> int:
        raise ArithmeticError("no")

    def end() -> int:
        ended.wait(0.05)
        ended.set()
        return 1

    assert pool.run([partial(int, i) for i in range(7)]) == list(range(7))
    with pytest.raises(ArithmeticError, match="no"):
        pool.run([fail, end])
    assert ended.is_set()
    assert pool.run([partial(int, 3), partial(int, 4)]) == [3, 4]


def test_sound_is_the_same_beside_others_and_alone(tiny_dir: Path) -> None:
    decoder = SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder")
    settings = SteadySettings(first=8, chunk=12, look_back=32, steps=2)
    codes = np.random.default_rng(0).integers(0, 64, (3, 40)).tolist()

    def speak(rows: list[int]) -> dict[int, np.ndarray]:
        steady = decoder.steady(settings, num_slots=len(rows))
        for row in rows:
            steady.open(str(row), seed=row)
            steady.push(str(row), codes[row])
            steady.finish(str(row))
        chunks = steady.step()
        return {row: np.concatenate([c.samples for c in chunks if c.key == str(row)]) for row in rows}

    together = speak([0, 1, 2])
    for row in (0, 1, 2):
        assert np.array_equal(speak([row])[row], together[row])
