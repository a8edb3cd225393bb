"""The native code of flow and vocoder: every set of instructions, any number of threads and rows, bad arguments, the choice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from innervoice_kernels import _C, native
from innervoice_kernels.backend import use
from innervoice_kernels.speech_codec import flow_stage, frame_conv, residual
from innervoice_kernels.testing import OPS, check
from innervoice_kernels.testing.speech_networks import _run_stage, _stage_weights

ISAS = _C.available_isas()
STAGES = ("tiny", "more than a panel", "a row of none", "no transformer")
UNITS = ("model", "edges", "primes", "few columns", "one tap", "pieces", "narrow")


def given(op: str, case: str) -> dict[str, Any]:
    found = next(one for one in OPS[op].cases if one.name == case)
    return found.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(1))


def stage_of(case: str) -> tuple[Tensor, Tensor, Tensor, flow_stage.StageWeights]:
    inputs = given("flow_stage", case)
    x, n, shift, heads = (inputs.pop(name) for name in ("x", "n", "shift", "heads"))
    return x, n, shift, _stage_weights(heads, inputs)


def unit_of(case: str) -> tuple[tuple[Any, ...], residual.ResidualWeights]:
    i = given("stream_residual", case)
    weights = residual.ResidualWeights(
        i["alpha"], i["first"], i["b1"], i["beta"], i["second"], i["b2"], i["dilation"]
    )
    return (i["x"], i["history"], i["inner"], i["n"], i["bounds"]), weights


def run_stage(
    packed: _C.FlowStage, team: _C.ThreadTeam, x: Tensor, n: Tensor, shift: Tensor, channels: int
) -> Tensor:
    y = torch.full((*x.shape[:2], channels), torch.nan)
    packed(team, x, n, shift, y)
    return y


def run_unit(packed: _C.ResidualUnit, team: _C.ThreadTeam, arguments: tuple[Any, ...]) -> list[Tensor]:
    x, history, inner, n, bounds = arguments
    after = [torch.full_like(part, torch.nan) for part in (x, history, inner)]
    packed(team, x, history, inner, n, bounds, *after)
    after[0].masked_fill_((torch.arange(x.shape[-1]) >= n[:, None])[:, None], 0)
    return after


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", STAGES)
def test_a_stage_is_its_definition_for_all_instructions(isa: str, case: str) -> None:
    x, n, shift, weights = stage_of(case)
    y = run_stage(weights.packed(isa=isa), _C.ThreadTeam(2), x, n, shift, len(shift))
    torch.testing.assert_close(y, flow_stage.flow_stage_ref(x, n, shift, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", UNITS)
def test_a_unit_is_its_definition_for_all_instructions(isa: str, case: str) -> None:
    arguments, weights = unit_of(case)
    ours = run_unit(weights.packed(isa=isa), _C.ThreadTeam(2), arguments)
    y, *after = residual.stream_residual_ref(*arguments[:4], weights, arguments[4])
    y = y.masked_fill((torch.arange(y.shape[-1]) >= arguments[3][:, None])[:, None], 0)
    for one, other in zip(ours, (y, *after), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    "avx512" not in ISAS, reason="products of bfloat16 need AVX-512, or a build that emulates it"
)
@pytest.mark.parametrize("case", STAGES)
def test_a_stage_in_bfloat16_obeys_the_error_rule(case: str) -> None:
    """Products of what is rounded to bfloat16; everything else stays float32: as near as the reference in bfloat16, twice."""

    def run(x: Tensor, n: Tensor, shift: Tensor, weights: flow_stage.StageWeights) -> Tensor:
        return run_stage(
            weights.packed(True, "avx512"), _C.ThreadTeam(2), x.float(), n, shift.float(), len(shift)
        ).to(x.dtype)

    found = next(one for one in OPS["flow_stage"].cases if one.name == case)
    check(OPS["flow_stage"], found, torch.bfloat16, fast=partial(_run_stage, run))


@pytest.mark.skipif(
    "avx512" not in ISAS, reason="products of bfloat16 need AVX-512, or a build that emulates it"
)
@pytest.mark.parametrize("case", UNITS)
def test_a_unit_in_bfloat16_is_near(case: str) -> None:
    arguments, unit = unit_of(case)
    ours = run_unit(unit.packed(True, "avx512"), _C.ThreadTeam(2), arguments)[0]
    y = residual.stream_residual_ref(*arguments[:4], unit, arguments[4])[0]
    y.masked_fill_((torch.arange(y.shape[-1]) >= arguments[3][:, None])[:, None], 0)
    torch.testing.assert_close(ours, y, rtol=0.05, atol=0.1)


@pytest.mark.skipif(
    "avx512" not in ISAS, reason="products of bfloat16 need AVX-512, or a build that emulates it"
)
def test_bits_in_bfloat16_depend_on_neither_threads_nor_neighbours() -> None:
    x, n, shift, weights = stage_of("more than a panel")
    packed = weights.packed(True, "avx512")
    whole = run_stage(packed, _C.ThreadTeam(1), x, n, shift, len(shift))
    assert torch.equal(run_stage(packed, _C.ThreadTeam(3), x, n, shift, len(shift)), whole)
    for row, length in enumerate(n.tolist()):
        alone = run_stage(
            packed,
            _C.ThreadTeam(2),
            x[row : row + 1, :length].contiguous(),
            n[row : row + 1],
            shift,
            len(shift),
        )
        assert torch.equal(alone[0], whole[row, :length])


def test_bits_depend_on_neither_threads_nor_neighbours() -> None:
    x, n, shift, weights = stage_of("more than a panel")
    packed = weights.packed()
    whole = run_stage(packed, _C.ThreadTeam(1), x, n, shift, len(shift))
    for threads in (2, 3):
        assert torch.equal(run_stage(packed, _C.ThreadTeam(threads), x, n, shift, len(shift)), whole)
    for row, length in enumerate(n.tolist()):
        alone = run_stage(
            packed,
            _C.ThreadTeam(2),
            x[row : row + 1, :length].contiguous(),
            n[row : row + 1],
            shift,
            len(shift),
        )
        assert torch.equal(alone[0], whole[row, :length])
    arguments, unit = unit_of("primes")
    both = run_unit(unit.packed(), _C.ThreadTeam(1), arguments)
    for row in range(2):
        alone_arguments = [part[row : row + 1].contiguous() for part in arguments[:4]]
        bounds = tuple(part[row : row + 1].contiguous() for part in arguments[4])
        alone_parts = run_unit(unit.packed(), _C.ThreadTeam(3), (*alone_arguments, bounds))
        assert all(torch.equal(one[0], other[row]) for one, other in zip(alone_parts, both, strict=True))


def test_torch_runs_alone_on_the_thread_that_asks_for_it_and_on_no_other() -> None:
    before, seen = torch.get_num_threads(), list[int]()

    def ask() -> None:
        native.keep_threads_native()
        seen.extend((torch.get_num_threads(), native.team().num_threads))

    for what in (ask, lambda: seen.append(torch.get_num_threads())):
        thread = Thread(target=what)
        thread.start()
        thread.join()
    assert seen == [1, before, before] and torch.get_num_threads() == before


def test_a_unit_over_a_whole_signal() -> None:
    arguments, weights = unit_of("primes")
    x = arguments[0].nan_to_num()
    with use("ref"):
        expected = residual.residual(x, weights)
    assert torch.equal(expected, residual.residual_ref(x, weights))
    torch.testing.assert_close(residual.residual(x, weights), expected, rtol=1e-5, atol=1e-5)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code by default on a CPU in float32 and bfloat16; the reference where it is asked for, or where sizes do not fit."""
    x, n, shift, weights = stage_of("tiny")
    calls: list[int] = []
    native: Callable[..., Tensor] = flow_stage._flow_stage_native

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return native(*args)

    monkeypatch.setattr(flow_stage, "_flow_stage_native", counted)
    flow_stage.flow_stage(x, n, shift, weights)
    with use("native"):
        flow_stage.flow_stage(x, n, shift, weights)
    assert len(calls) == 2
    with use("ref"):
        flow_stage.flow_stage(x, n, shift, weights)
    with use("native", flow_stage="ref"):
        flow_stage.flow_stage(x, n, shift, weights)
    flow_stage.flow_stage(*stage_of("primes"))  # 8 channels
    assert len(calls) == 2
    pairs = {
        name: value.bfloat16()
        for name, value in given("flow_stage", "tiny").items()
        if torch.is_tensor(value) and name != "n"
    }
    halves = pairs.pop("x"), n, pairs.pop("shift"), _stage_weights(2, pairs)
    assert (
        flow_stage.flow_stage(*halves).dtype == torch.bfloat16
    )  # by float32 where there are no products of bfloat16
    assert len(calls) == 3
    with (
        use("native"),
        pytest.raises(ValueError, match="native implementation was chosen for tensors on meta"),
    ):
        frame_conv.choose("frame_conv", torch.empty(1, device="meta"), has_native=True)


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    x, n, shift, weights = stage_of("tiny")
    packed, team, y = weights.packed(), _C.ThreadTeam(1), torch.empty(3, 37, 32)
    with pytest.raises(ValueError, match="row 1 has length 38, expected 0 to 37"):
        packed(team, x, torch.tensor([1, 38, 0]), shift, y)
    with pytest.raises(ValueError, match=r"x: expected float32 \[R, T, K\] with K = 320"):
        packed(team, x[..., :16].contiguous(), n, shift, y)
    with pytest.raises(ValueError, match="out: expected"):
        packed(team, x, n, shift, y[:, :36].contiguous())
    with pytest.raises(ValueError, match="a stage has 10 tensors"):
        _C.FlowStage([x], [], 1)
    with pytest.raises(ValueError, match="isa 'sse' is unknown"):
        weights.packed(isa="sse")
    if not _C.has_halves():
        with pytest.raises(ValueError, match="they need avx512"):
            weights.packed(halves=True)
    conv = frame_conv.FrameConvWeights(torch.zeros(16, 16, 3), torch.zeros(16), 1).native
    with pytest.raises(ValueError, match="stride must be above 0"):
        conv(team, torch.zeros(1, 4, 16), torch.tensor([4]), 0, 1, torch.zeros(1, 4, 16), torch.tensor([4]))
    with pytest.raises(ValueError, match="k odd"):
        _C.ResidualUnit(*[torch.zeros(16), torch.zeros(16, 2, 16), torch.zeros(16)] * 2, 1)
