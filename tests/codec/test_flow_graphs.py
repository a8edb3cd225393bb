"""Replayed steps of the flow against steps that are launched one by one; here a graph is a function that is
called again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_codec import MEL, small_flow
from torch import Tensor

from innervoice.codec import call_graphs
from innervoice.codec.call_graphs import MOST_ROWS, CallSize
from innervoice.codec.glm_voice import flow
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.flow_choice import TransformerChoice
from innervoice.codec.glm_voice.flow_graphs import StepGraphs
from innervoice_kernels.backend import REF, TRITON, use
from innervoice_kernels.graphs import capturing


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Flow:
    """Takes its own kernels for chosen, which is what graphs are for."""
    monkeypatch.setattr(flow, "choose", lambda op, x, has_native: TRITON)
    made = small_flow()
    made.graphs = StepGraphs(made, "cpu", capture=lambda run: run)
    return made


def inputs(rows: int, frames: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, mu, cond = (torch.randn(rows, MEL, frames, generator=generator) for _ in range(3))
    return x, mu, torch.randn(rows, MEL, generator=generator), cond


def eagerly(made: Flow, *args: Any) -> Tensor:
    graphs, made.graphs = made.graphs, None
    mel = made.solve(*args)
    made.graphs = graphs
    return mel


@pytest.mark.parametrize("rows", [1, 3])
def test_replayed_steps_are_the_same_bits(small: Flow, rows: int) -> None:
    """Several sizes in turns, each with other inputs, numbers of steps and lengths every time."""
    graphs = small.graphs
    assert graphs is not None
    for turn in range(4):
        for frames, has_lengths, steps in ((10, True, 2), (16, False, 3), (16, True, 1 + turn)):
            n = torch.tensor([frames - (turn + i) % 4 for i in range(rows)]) if has_lengths else None
            args = (*inputs(rows, frames, 7 * turn + frames), steps, n)
            assert torch.equal(small.solve(*args), eagerly(small, *args))
    assert graphs.num_captured == 3 and graphs.num_replays == 3 * (2 + 3) + 2 + 3 + 4


def test_a_result_outlives_the_next_call(small: Flow) -> None:
    args = [(*inputs(1, 8, seed), 2, None) for seed in range(3)]
    made = [small.solve(*one) for one in args]
    assert all(torch.equal(mel, eagerly(small, *one)) for mel, one in zip(made, args, strict=True))


def test_many_rows_and_first_times_are_not_captured(small: Flow) -> None:
    graphs = small.graphs
    assert graphs is not None
    for frames in (8, 10, 12):
        small.solve(*inputs(1, frames, 0), 1, None)
    for _ in range(3):
        small.solve(*inputs(MOST_ROWS + 1, 8, 0), 1, None)
    assert graphs.num_captured == 0


def test_other_kernels_than_those_captured_have_a_graph_of_their_own(
    small: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = small.graphs
    assert graphs is not None
    for _ in range(3):
        small.solve(*inputs(1, 8, 0), 1, None)
    monkeypatch.setattr(flow, "choose", lambda op, x, has_native: REF if op == "flow_block" else TRITON)
    for _ in range(3):
        small.solve(*inputs(1, 8, 0), 1, None)
    assert graphs.num_captured == 2 and graphs.num_replays == 4


def test_sizes_are_captured_before_the_first_reply_and_others_padded_to_them(small: Flow) -> None:
    """Rows to a power of two, frames to the next length that is known; larger ones are launched one by one."""
    graphs = small.graphs
    assert graphs is not None
    with capturing():
        for rows, frames in ((1, 8), (1, 16), (3, 16)):
            small.solve(*inputs(rows, frames, 0), 1, torch.full((rows,), frames))
    assert [size[:2] for size in graphs.graphs.sizes] == [(1, 8), (1, 16), (4, 16)]
    for rows, frames in ((1, 6), (1, 12), (2, 8), (4, 16), (3, 10)):
        n = torch.tensor([frames - i for i in range(rows)])
        args = (*inputs(rows, frames, 5), 2, n)
        before = graphs.num_replays
        made, expected = small.solve(*args), eagerly(small, *args)
        for row, num in enumerate(n.tolist()):
            torch.testing.assert_close(made[row, :, :num], expected[row, :, :num], rtol=1e-5, atol=1e-5)
        assert made.shape == expected.shape and graphs.num_replays == before + 2
    for args in ((*inputs(1, 18, 0), 1, torch.tensor([18])), (*inputs(5, 8, 0), 1, torch.tensor([8] * 5))):
        for _ in range(3):
            small.solve(*args)
    assert graphs.num_captured == 3


def test_sizes_that_are_no_longer_asked_for_are_given_up(
    small: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = small.graphs
    assert graphs is not None
    monkeypatch.setattr(call_graphs, "MOST_GRAPHS", 2)
    for frames in (8, 8, 10, 10, 8, 12, 8, 10):  # 12 takes the place of 10
        small.solve(*inputs(1, frames, 0), 1, None)
    assert graphs.num_captured == 2 and graphs.num_replays == 4
    kind = (MEL, True, (TRITON,) * 4)
    assert graphs.graphs.sizes == [CallSize(1, 8, kind)]


def test_a_capture_that_fails_leaves_single_launches(small: Flow, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    small.graphs = graphs = StepGraphs(small, "cpu", capture=refuse)
    args = (*inputs(2, 8, 0), 2, torch.tensor([8, 5]))
    with caplog.at_level(logging.WARNING, "innervoice.codec"):
        made = [small.solve(*args) for _ in range(4)]
    assert all(torch.equal(mel, eagerly(small, *args)) for mel in made)
    assert graphs.error == "RuntimeError: operation not permitted when stream is capturing"
    assert caplog.text.count("launched one by one") == 1


class Timed:
    """A clock by which torch's transformers take as long as the factor says for a size, and the own ones 1 s."""

    def __init__(self, made: Flow, factors: dict[int, float]) -> None:
        self.factors, self.num_calls = factors, 0
        own, by_torch = (StepGraphs(made, "cpu", capture=lambda run: run) for _ in range(2))
        made.choice = self.choice = TransformerChoice(own, by_torch, self)
        made.graphs = own

    def __call__(self, run: Any) -> float:
        run()
        self.num_calls += 1
        replayed = self.choice.by_torch.graphs.sizes
        return self.factors[replayed[-1].length] if self.num_calls % 2 == 0 else 1.0


def test_the_faster_transformers_are_chosen_by_size_when_graphs_are_captured(
    small: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of torch where they are clearly faster; smaller calls go by the size that they are padded to."""
    timed = Timed(small, {8: 0.5, 16: 0.97, 32: 1.5})
    own, by_torch = timed.choice.own, timed.choice.by_torch
    with capturing():
        for frames in (8, 16, 32, 8):
            small.solve(*inputs(1, frames, 0), 1, torch.tensor([frames]))
    assert timed.num_calls == 6 and own.num_captured == by_torch.num_captured == 3
    for frames, chosen, other in (
        (8, by_torch, own),
        (7, by_torch, own),
        (16, own, by_torch),
        (20, own, by_torch),
    ):
        before, unused = chosen.num_replays, other.num_replays
        args = (*inputs(1, frames, 3), 2, torch.tensor([frames]))
        made = small.solve(*args)
        torch.testing.assert_close(made, eagerly(small, *args), rtol=1e-5, atol=1e-5)
        assert (chosen.num_replays, other.num_replays) == (before + 2, unused)
    unused = by_torch.num_replays
    with use(flow_block="ref"):  # asked for: the graphs of the flow itself, keyed by what is asked for
        small.solve(*inputs(1, 8, 3), 1, torch.tensor([8]))
    assert by_torch.num_replays == unused


def test_a_capture_that_fails_for_torch_leaves_the_own_graphs(small: Flow) -> None:
    timed = Timed(small, {8: 0.1})

    def refuse(run: Any) -> Any:
        raise RuntimeError("it waits for the host")

    timed.choice.by_torch = StepGraphs(small, "cpu", capture=refuse)
    with capturing():
        small.solve(*inputs(1, 8, 0), 1, torch.tensor([8]))
    before = timed.choice.own.num_replays
    small.solve(*inputs(1, 8, 1), 2, torch.tensor([8]))
    assert timed.choice.own.num_replays == before + 2 and timed.choice.own.error is None
    assert timed.choice.by_torch.error == "RuntimeError: it waits for the host"


def test_what_is_asked_for_is_not_measured(small: Flow) -> None:
    timed = Timed(small, {8: 0.1})
    with capturing(), use("ref"):
        small.solve(*inputs(1, 8, 0), 1, torch.tensor([8]))
    assert timed.num_calls == 0 and timed.choice.by_torch.num_captured == 0
