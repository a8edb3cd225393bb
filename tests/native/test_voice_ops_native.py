"""Native transforms, norms and encoder layers of the voice: all instructions by the error rule, threads, rows, cuts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from innervoice_kernels import _C, native
from innervoice_kernels.speech_codec import groupnorm, istft, mel, relative, relative_layer, stft, stream_conv
from innervoice_kernels.testing import OPS, check
from innervoice_kernels.testing.speech_codec import _run_stft
from innervoice_kernels.testing.speech_networks import (
    layer_weights,
    run_layer,
    run_stream_conv,
    run_whole_conv,
)

ISAS = _C.available_isas()
TEAM = _C.ThreadTeam(2)


def whole_istft(isa: str, real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    frames = real.shape[-1]
    n = torch.full((len(real),), frames)
    edges = (hop, torch.zeros_like(n), n, window.shape[0] // 2, hop * (frames - 1))
    return istft._istft_native(real, imag, None, n, window, *edges, isa)[0]


def stream_istft(isa: str, **given: Any) -> tuple[Tensor, Tensor | None]:
    return istft._istft_native(**given, first=0, columns=given["hop"] * given["real"].shape[-1], isa=isa)


def layer(
    isa: str, x: Tensor, cache: Tensor, weights: relative_layer.RelativeLayer, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    if not (weights.has_native and x.numel()):
        return relative_layer.relative_layer_ref(x, cache, weights, *rest)
    y, after = torch.empty_like(x), torch.empty_like(cache)
    weights.packed(isa)(TEAM, x, cache, *rest, y, after)
    return y, after


RUNS: dict[str, Callable[..., Any]] = {
    "stream_stft": lambda isa, **given: _run_stft(partial(stft._stream_stft_native, isa=isa), **given),
    "istft": whole_istft,
    "stream_istft": stream_istft,
    "log_frames": lambda isa, **given: mel._log_frames_native(**given, isa=isa),
    "relative_attention": lambda isa, **given: relative._relative_attention_native(**given, isa=isa),
    "relative_layer": lambda isa, **given: run_layer(partial(layer, isa), **given),
    "stream_conv": lambda isa, **given: run_stream_conv(
        partial(stream_conv._stream_conv_native, isa=isa), **given
    ),
    "whole_conv": lambda isa, **given: run_whole_conv(
        partial(stream_conv._whole_conv_native, isa=isa), **given
    ),
    "group_norm_mish": lambda isa, **given: groupnorm._group_norm_mish_native(**given, eps=1e-5, isa=isa),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", RUNS)
def test_every_case_follows_the_error_rule_for_all_instructions(isa: str, name: str) -> None:
    for case in OPS[name].cases:
        if name == "relative_attention" and case.name == "empty":
            continue  # nothing to attend to: the reference runs
        check(OPS[name], case, torch.float32, fast=partial(RUNS[name], isa))


def given(op: str, case: str) -> dict[str, Any]:
    found = next(one for one in OPS[op].cases if one.name == case)
    return found.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(1))


CHANGED = {
    "stream_stft": "goes on", "stream_istft": "goes on", "log_frames": "many", "relative_attention": "primes",
    "relative_layer": "more than a panel", "group_norm_mish": "primes",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_bits_depend_on_neither_threads_nor_neighbours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, inputs = OPS[name], given(name, CHANGED[name])

    def run(inputs: dict[str, Any], threads: int) -> tuple[Tensor, ...]:
        team = _C.ThreadTeam(threads)
        for module in (stft, istft, mel, relative, relative_layer, groupnorm):
            monkeypatch.setattr(module, "team", lambda: team)
        return op.outputs(op.fast, inputs)

    whole = run(inputs, 1)
    assert all(
        torch.equal(a, b) for threads in (2, 3) for a, b in zip(run(inputs, threads), whole, strict=True)
    )
    batched = {
        "x",
        "state",
        "n",
        "start",
        "end",
        "real",
        "imag",
        "samples",
        "q",
        "k",
        "v",
        "visible",
        "cache",
        "closed",
    }
    for row in range(len(whole[0])):
        own = {key: value[row : row + 1] if key in batched else value for key, value in inputs.items()}
        assert all(torch.equal(a[0], b[row]) for a, b in zip(run(own, 2), whole, strict=True))


@pytest.mark.parametrize("cut", [1, 7, 48, 101])
def test_a_cut_stream_has_the_bits_of_the_whole(cut: int) -> None:
    """Forth and back, cut once: samples and the state that is left."""
    inputs = given("stream_stft", "goes on")
    x, state, window, hop, start = (
        inputs[name][:1] if name != "hop" else 4 for name in ("x", "state", "window", "hop", "start")
    )
    window, n, end = inputs["window"], torch.tensor([812]), torch.tensor([1 << 40])
    whole, after = stft.stream_stft(x, state, n, window, hop, start, end)
    first, middle = stft.stream_stft(x[:, : 4 * cut], state, torch.tensor([4 * cut]), window, hop, start, end)
    rest, last = stft.stream_stft(x[:, 4 * cut :], middle, n - 4 * cut, window, hop, start + 4 * cut, end)
    assert torch.equal(torch.cat([first, rest], -1), whole)
    assert torch.equal(last, after)
    place, frames, overlap = start // 4, n // 4, torch.zeros(1, 12)
    parts = whole.chunk(2, 1)
    samples, kept = istft.stream_istft(*parts, overlap, frames, window, hop, place, end)
    one, middle = istft.stream_istft(
        *(p[..., :cut] for p in parts), overlap, torch.tensor([cut]), window, hop, place, end
    )
    other, last = istft.stream_istft(
        *(p[..., cut:] for p in parts), middle, frames - cut, window, hop, place + cut, end
    )
    assert torch.equal(torch.cat([one, other], -1), samples)
    assert torch.equal(last, kept)


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="size is 7, expected an even number"):
        _C.RealTransform(7)
    transform, window, one = _C.RealTransform(16), torch.hann_window(16), torch.tensor([0])
    with pytest.raises(ValueError, match="hop is 17, expected 1 to 16"):
        transform.log_mel(TEAM, torch.zeros(1, 16), torch.zeros(9, 4), 17, torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match="15 a row, expected at least a frame of 16"):
        transform.log_mel(TEAM, torch.zeros(1, 15), torch.zeros(9, 4), 4, torch.zeros(1, 4, 1))
    states = [torch.zeros(1, 12) for _ in range(2)]
    with pytest.raises(ValueError, match="row 0 has length 9, expected 0 to 8"):
        transform.stft(
            TEAM, torch.zeros(1, 8), states[0], one + 9, window, 4, one, one, torch.zeros(1, 18, 2), states[1]
        )
    spectrum = [torch.zeros(1, 9, 2) for _ in range(2)]
    with pytest.raises(ValueError, match="both or none"):
        transform.istft(TEAM, *spectrum, states[0], one, window, 4, one, one, 0, torch.zeros(1, 8), None)
    weights = given("relative_layer", "tiny")
    packed = layer_weights(weights).packed()
    x, cache, visible, closed = (weights[name] for name in ("x", "cache", "visible", "closed"))
    with pytest.raises(ValueError, match="row 1 has length 36, expected 0 to 35"):
        packed(TEAM, x, cache, visible, torch.tensor([0, 36]), torch.empty_like(x), torch.empty_like(cache))
    with pytest.raises(ValueError, match=r"cache: expected float32 \[B, C, 2, D\]"):
        packed(
            TEAM, x, cache[:, 1:].contiguous(), visible, closed, torch.empty_like(x), torch.empty_like(cache)
        )
    with pytest.raises(ValueError, match="groups: must divide the channels"):
        _C.group_norm_mish(
            TEAM, torch.zeros(1, 8, 4), one, torch.ones(8), torch.ones(8), 3, 1e-5, torch.zeros(1, 8, 4)
        )
    assert native.CHANNEL_MULTIPLE == 16


@pytest.mark.parametrize("case", ["few results", "up", "down", "dilated", "uneven"])
def test_bits_of_a_convolution_depend_on_neither_threads_nor_neighbours_nor_cuts(case: str) -> None:
    found = next(one for one in OPS["stream_conv"].cases if one.name == case)
    inputs = found.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(1))
    x, state, n = inputs["x"], inputs["state"], inputs["n"]
    weights = stream_conv.StreamConvWeights(inputs["weight"], inputs["bias"], *inputs["layer"])
    whole, after = run_stream_conv(stream_conv.stream_conv, **inputs)
    for threads in (1, 3):
        with_team(
            _C.ThreadTeam(threads),
            lambda: assert_same(run_stream_conv(stream_conv.stream_conv, **inputs), (whole, after)),
        )
    for row, steps in enumerate(n.tolist()):
        own, count = state[row : row + 1], 0
        unit = 1 if weights.is_transposed else weights.stride
        for begin, end in pairwise((0, unit, max(unit, steps // 2 // unit * unit), steps)):
            edges = None
            if inputs["bounds"] is not None:
                edges = (inputs["bounds"][0][row : row + 1] + count, inputs["bounds"][1][row : row + 1])
            part = x[row : row + 1, :, begin:end].contiguous()
            y, own = stream_conv.stream_conv(
                part, own.contiguous(), torch.tensor([end - begin]), weights, edges
            )
            assert torch.equal(y[0], whole[row, :, count : count + y.shape[-1]]), (row, begin, end)
            count += y.shape[-1]
        assert torch.equal(own[0], after[row])


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def with_team(team: _C.ThreadTeam, body: Callable[[], Any]) -> Any:
    def run() -> Any:
        native.work_with(team)
        return body()

    return copy_context().run(run)


@pytest.mark.parametrize("isa", ISAS)
def test_a_convolution_in_float64_is_its_definition_for_all_instructions(isa: str) -> None:
    for case in OPS["stream_conv"].cases:
        inputs = case.make_inputs(torch.float64, "cpu", torch.Generator().manual_seed(1))
        weights = stream_conv.StreamConvWeights(inputs["weight"], inputs["bias"], *inputs["layer"][:3])
        if not weights.has_double:
            continue
        given = {**inputs, "layer": (*inputs["layer"][:3], 1.0)}
        ours = run_stream_conv(partial(stream_conv._stream_conv_double, isa=isa), **given)
        for one, other in zip(ours, run_stream_conv(stream_conv.stream_conv_ref, **given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
        if isa == ISAS[-1]:
            assert_same(run_stream_conv(stream_conv.stream_conv, **given), ours)


@pytest.mark.parametrize("case", ["first", "dilated", "pieces"])
def test_bits_of_a_convolution_in_float64_depend_on_neither_threads_nor_cuts(case: str) -> None:
    found = next(one for one in OPS["stream_conv"].cases if one.name == case)
    inputs = found.make_inputs(torch.float64, "cpu", torch.Generator().manual_seed(1))
    weights, x = (
        stream_conv.StreamConvWeights(inputs["weight"], inputs["bias"], *inputs["layer"]),
        inputs["x"][:1],
    )
    assert weights.has_double
    whole, after = stream_conv.stream_conv(x, inputs["state"][:1], torch.tensor([x.shape[-1]]), weights)
    own, pieces = inputs["state"][:1], []
    for threads, part in zip((1, 3, 2), x.split([1, 2, x.shape[-1] - 3], -1), strict=True):

        def run(part: Tensor = part, own: Tensor = own) -> tuple[Tensor, Tensor]:
            return stream_conv.stream_conv(part, own, torch.tensor([part.shape[-1]]), weights)

        y, own = with_team(_C.ThreadTeam(threads), run)
        pieces.append(y)
    assert_same((torch.cat(pieces, -1), own), (whole, after))


def test_a_convolution_in_bfloat16_runs_natively_with_floats_inside() -> None:
    found = OPS["stream_conv"].cases[1]
    assert found.name == "first"
    check(OPS["stream_conv"], found, torch.bfloat16)
    inputs = found.make_inputs(torch.bfloat16, "cpu", torch.Generator().manual_seed(1))
    wide = {
        key: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    expected = run_stream_conv(stream_conv.stream_conv, **wide)[0].bfloat16()
    assert torch.equal(run_stream_conv(stream_conv.stream_conv, **inputs)[0], expected)


def test_a_convolution_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a convolution has weights \[C' u, taps, s C\]"):
        _C.StreamConv(torch.zeros(4, 1, 3), torch.zeros(4), stride=2)
    conv, x = _C.StreamConv(torch.zeros(4, 2, 3), torch.zeros(4)), torch.zeros(1, 3, 5)
    with pytest.raises(ValueError, match=r"x: expected float32 \[B, C, T\]"):
        conv(TEAM, x[..., :1].contiguous(), torch.zeros(1, 2, 5), 0, None, torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="n: row 0 has length 6"):
        conv(
            TEAM,
            x[..., :1].contiguous(),
            x,
            0,
            None,
            torch.zeros(1, 4, 5),
            (torch.tensor([6]), torch.zeros(1, 3, 1)),
        )
    double = _C.DoubleConv(torch.zeros(4, 2, 3).double(), torch.zeros(4).double())
    with pytest.raises(ValueError, match=r"x: expected float64 \[B, C, T\]"):
        double(
            TEAM,
            x[..., :1].double(),
            x,
            None,
            torch.zeros(1, 4, 5).double(),
            torch.tensor([5]),
            x[..., :1].double(),
        )
