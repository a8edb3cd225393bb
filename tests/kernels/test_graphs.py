"""Captures of CUDA graphs, with torch's calls played by a recorder: what a capture that fails leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from innervoice_kernels.graphs import GraphPool, capturing, is_capturing

POOL = (0, 7)


class Stream:
    priority = -1

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.priority = priority

    def wait_stream(self, other: Any) -> None:
        pass


class Cuda:
    """The parts of torch.cuda that a capture calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: bool = True) -> None:
        self.home = self.stream = Stream(priority=-1)
        self.log: list[Any] = []
        self.device = 0
        cuda = self

        class Graph:
            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                assert cuda.device == 1, "a capture is of the current device"
                cuda.log.append(("begin", pool, capture_error_mode, cuda.stream.priority))

            def capture_end(self) -> None:
                cuda.log.append("end")
                if not ends:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self) -> None:
                cuda.log.append("replay")

        own = {
            "synchronize": lambda device: None,
            "current_stream": lambda device: self.stream,
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: POOL,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "current_device": lambda: self.device,
            "device": self.on,
        }
        for name, value in own.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(
                torch._C,
                name,
                lambda index, pool, name=name: self.log.append((name, index, pool)),
                raising=False,
            )

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        assert device.index is not None
        before, self.device = self.device, device.index
        yield
        self.device = before


BEGUN = ("begin", POOL, "thread_local", -1)
FREED = [("_cuda_endAllocateToPool", 1, POOL), ("_cuda_releasePool", 1, POOL)]


def test_a_capture_is_replayed_and_shares_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    pool = GraphPool("cuda:1")
    for _ in range(2):
        pool.capture(lambda: cuda.log.append("run"))()
    assert cuda.log == [BEGUN, "run", "end", "replay"] * 2 and cuda.stream is cuda.home


@pytest.mark.parametrize(
    "error", [RuntimeError("not permitted"), ValueError("no such kernel"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, ends: bool
) -> None:
    """Whether the capture that it broke off can be ended or not."""
    cuda = Cuda(monkeypatch, ends)

    def run() -> None:
        raise error

    with pytest.raises(type(error)):
        GraphPool("cuda:1").capture(run)
    assert cuda.log == [BEGUN, "end", *([] if ends else FREED)] and cuda.stream is cuda.home


def test_a_capture_that_cuda_refuses_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, ends=False)
    with pytest.raises(RuntimeError, match="previous error"):
        GraphPool("cuda:1").capture(lambda: None)
    assert cuda.log == [BEGUN, "end", *FREED] and cuda.stream is cuda.home


def test_sizes_are_captured_within_a_scope() -> None:
    with capturing():
        assert is_capturing()
    assert not is_capturing()
