"""Streams of threads and parts, with torch's calls played by a recorder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from innervoice_kernels.streams import lead, own_stream


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    @contextmanager
    def stream(one: Any) -> Any:
        made.append(("enter", one))
        yield
        made.append(("leave", one))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: (str(device), priority))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(("device", str(device))))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda one: made.append(("stream", one)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return made


@pytest.mark.parametrize(("name", "index"), [("cuda", "0"), ("cuda:1", "cuda:1")])
def test_the_thread_that_decodes_goes_first_on_its_device(log: list[Any], name: str, index: str) -> None:
    lead(torch.device(name))
    assert log == [("device", index), ("stream", (name, -1))]


def test_on_a_cpu_nothing_changes(log: list[Any]) -> None:
    lead(torch.device("cpu"))
    assert log == []


def test_a_part_has_one_stream_for_all_its_calls(log: list[Any]) -> None:
    within = own_stream(torch.device("cuda:1"))
    for _ in range(2):
        with within():
            pass
    assert log == [("enter", ("cuda:1", 0)), ("leave", ("cuda:1", 0))] * 2
