"""Streams of threads and parts, with torch's calls played by a recorder."""

from __future__ import annotations

import ast
import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from paths import ROOT

from innervoice_kernels.speech_codec.frame_conv import FrameConvWeights
from innervoice_kernels.speech_codec.residual import ResidualWeights
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights
from innervoice_kernels.streams import StreamOrder, laid_out, lead, own_stream


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


class Device:
    """Streams whose work ends when it is said to. log: marks and waits, with the stream that they stand in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current, self.is_capturing = "a", False
        self.ended: set[str] = set()
        self.log: list[tuple[str, str, str]] = []
        patch.setattr(torch.cuda, "Event", lambda: Event(self))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(self, self.current))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.is_capturing)


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_event(self, event: Event) -> None:
        self.device.log.append((self.name, "waits for", event.stream))


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, ""

    def record(self, stream: Stream) -> None:
        self.stream = stream.name
        self.device.log.append((stream.name, "marks", ""))

    def query(self) -> bool:
        assert not self.device.is_capturing, "a capture breaks off"
        return self.stream in self.device.ended


class Weights:
    """Weights that are laid out at first use. num_made: how often they were."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.num_made = 0

    @laid_out
    def taps(self) -> torch.Tensor:
        """What is laid out."""
        self.num_made += 1
        return torch.ones(3)


def test_a_stream_waits_for_weights_that_another_lays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    device, weights = Device(monkeypatch), Weights("cuda")
    first = weights.taps
    device.current = "b"
    assert weights.taps is first and weights.num_made == 1
    assert device.log == [("a", "marks", ""), ("b", "waits for", "a")]
    device.is_capturing = True  # which begins when the device is at rest
    assert weights.taps is first and len(device.log) == 2
    device.is_capturing = False
    device.ended.add("a")
    for device.current in ("c", "d"):
        assert weights.taps is first and len(device.log) == 2
    assert vars(weights)["taps"] is first  # and nothing is looked up any more


def test_a_copy_of_weights_waits_for_its_own_making(monkeypatch: pytest.MonkeyPatch) -> None:
    device, weights = Device(monkeypatch), Weights("cuda")
    first = weights.taps
    device.current = "b"
    twin = copy.deepcopy(weights)
    device.current = "c"
    assert twin.taps is not first and torch.equal(twin.taps, first)
    assert device.log[-2:] == [("c", "waits for", "b")] * 2


def test_weights_on_a_cpu_are_laid_out_without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    device, weights = Device(monkeypatch), Weights("cpu")
    assert weights.taps is weights.taps and (device.log, weights.num_made) == ([], 1)
    assert Weights.taps.__doc__ == "What is laid out."


def test_streams_take_turns_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn's work lies behind that of the turn before, also where that one failed."""
    device, order = Device(monkeypatch), StreamOrder()
    with pytest.raises(ZeroDivisionError), order.turn(torch.device("cuda")):
        raise ZeroDivisionError
    device.current = "b"
    with order.turn(torch.device("cuda")):
        device.log.append(("b", "works", ""))
    assert device.log == [("a", "marks", ""), ("b", "waits for", "a"), ("b", "works", ""), ("b", "marks", "")]


ALL_LAID_OUT = [
    (FrameConvWeights(torch.randn(4, 3, 3), torch.zeros(4), 1), ("taps",)),
    (StreamConvWeights(torch.randn(4, 3, 3), None), ("columns", "taps")),
    (
        ResidualWeights(
            torch.ones(4), torch.randn(4, 4, 3), None, torch.ones(4), torch.randn(4, 4, 3), None, 1
        ),
        ("taps",),
    ),
]


@pytest.mark.parametrize(("weights", "names"), ALL_LAID_OUT, ids=lambda one: type(one).__name__)
def test_what_kernels_read_is_laid_out_with_a_mark(
    weights: Any, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights that say that they lie on a GPU."""
    device = Device(monkeypatch)
    monkeypatch.setattr(type(weights), "device", torch.device("cuda"))
    for name in names:
        getattr(weights, name)
        assert device.log[-1] == ("a", "marks", "")
        device.current = "b"
        getattr(weights, name)
        assert device.log[-1] == ("b", "waits for", "a")
        device.current = "a"


def test_no_tensor_of_a_gpu_is_a_cached_property() -> None:
    """Those that are left hold what native code packs on the CPU, or numbers."""
    plain = {
        ast.unparse(node.returns) if node.returns else ""
        for path in (ROOT / "kernels" / "innervoice_kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(one) == "cached_property" for one in node.decorator_list)
    }
    assert not any("Tensor" in kind for kind in plain) and "bool" in plain
