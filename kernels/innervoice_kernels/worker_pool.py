"""Independent pieces of work, side by side on the CPU, because a small piece divides badly over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

from innervoice_kernels import _C
from innervoice_kernels.native import team, torch_threads_here, work_with

_T = TypeVar("_T")
_MOST = 4  # beyond that the pieces wait for the interpreter's lock


class WorkerPool:
    """Runs pieces of work, as many at once as there are threads and no more than 4, with the threads dealt
    out among them.

    Torch has one thread on a worker, and native code the worker's share. A piece that is alone, or the last
    one of an odd number, runs where it is called, with all threads; so do all that begin when the main thread
    has ended. For one caller at a time.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._teams: dict[int, list[_C.ThreadTeam]] = {}

    def run(self, pieces: Sequence[Callable[[], _T]]) -> list[_T]:
        """Run the pieces and return their results in order. An error of one is raised when those beside it
        have ended.
        """
        made: list[_T] = []
        threads = team().num_threads
        while len(made) < len(pieces):
            left = pieces[len(made) : len(made) + min(_MOST, threads)]
            made += [left[0]()] if len(left) == 1 else self._round(left, threads // len(left))
        return made

    def _round(self, pieces: Sequence[Callable[[], _T]], threads: int) -> list[_T]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                _MOST, "innervoice-worker", initializer=torch_threads_here, initargs=(1,)
            )
        teams = self._teams.setdefault(threads, [])
        teams += [_C.ThreadTeam(threads) for _ in range(len(pieces) - len(teams))]
        mode = torch.is_inference_mode_enabled()
        waiting: list[Future[_T]] = []
        for piece, own in zip(pieces, teams, strict=False):
            try:
                waiting.append(self._pool.submit(copy_context().run, _on_worker, piece, own, mode))
            except RuntimeError:  # behind the main thread's end pools take no more work
                break
        for future in waiting:
            future.exception()  # all end before any result is taken
        return [future.result() for future in waiting] + [piece() for piece in pieces[len(waiting) :]]


def _on_worker(piece: Callable[[], _T], own: _C.ThreadTeam, mode: bool) -> _T:
    work_with(own)
    with torch.inference_mode(mode):
        return piece()
