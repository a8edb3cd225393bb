"""Cases of the networks of flow and vocoder: stages, convolutions over frames, residual units, norms,
relative attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.speech_codec import (
    flow_block,
    flow_stage,
    frame_conv,
    groupnorm,
    relative,
    relative_layer,
    residual,
    stream_conv,
)
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, normal, on_host, rows


def _weights(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: DeviceName, generator: torch.Generator
) -> dict[str, Tensor]:
    """By name: biases small, norms near 1, everything else scaled so that what comes out is as large as what
    goes in.
    """
    made = {}
    for name, shape in shapes.items():
        fan_in = 1
        for size in shape[1:]:
            fan_in *= size
        values = (
            torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
            * fan_in**-0.5
        )
        made[name] = (
            1 + 0.1 * values if name.startswith("norm") else 0.1 * values if len(shape) == 1 else values
        ).to(dtype)
    return {name: value.to(device) for name, value in made.items()}


def _padded(x: Tensor, lengths: list[int], axis: int) -> Tensor:
    """NaN where a row is padded."""
    for row, n in enumerate(lengths):
        x[row].narrow(axis - 1, n, x.shape[axis] - n).fill_(torch.nan)
    return x


def _stage_shapes(
    inputs: int, channels: int, inner: int, hidden: int, blocks: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv1": (channels, inputs, 3), "bias1": (channels,), "norm1": (channels,), "shift1": (channels,),
        "conv2": (channels, channels, 3), "bias2": (channels,), "norm2": (channels,), "shift2": (channels,),
        "skip": (channels, inputs, 1), "bias3": (channels,),
    }  # fmt: skip
    for i in range(blocks):
        shapes |= {
            f"norm_a{i}": (channels,), f"shift_a{i}": (channels,), f"qkv{i}": (3 * inner, channels), f"out{i}": (channels, inner),
            f"out_b{i}": (channels,), f"norm_f{i}": (channels,), f"shift_f{i}": (channels,), f"up{i}": (hidden, channels),
            f"up_b{i}": (hidden,), f"down{i}": (channels, hidden), f"down_b{i}": (channels,),
        }  # fmt: skip
    return shapes


def _block_weights(w: dict[str, Tensor], i: int) -> flow_block.TransformerWeights:
    pairs = [
        (w[f"{a}{i}"], w[f"{b}{i}"])
        for a, b in (("norm_a", "shift_a"), ("out", "out_b"), ("norm_f", "shift_f"))
    ]
    feed = [(w[f"{name}{i}"], w[f"{name}_b{i}"]) for name in ("up", "down")]
    return flow_block.TransformerWeights(pairs[0], w[f"qkv{i}"], pairs[1], pairs[2], *feed)


def _stage_weights(heads: int, w: dict[str, Tensor]) -> flow_stage.StageWeights:
    count = sum(name.startswith("qkv") for name in w)
    convs = [
        (w["conv1"], w["bias1"]),
        (w["norm1"], w["shift1"]),
        (w["conv2"], w["bias2"]),
        (w["norm2"], w["shift2"]),
    ]
    return flow_stage.StageWeights(
        *convs, (w["skip"], w["bias3"]), tuple(_block_weights(w, i) for i in range(count)), heads
    )


def _stage_case(
    name: str,
    lengths: list[int],
    frames: int,
    inputs: int,
    channels: int,
    heads: int,
    width: int,
    hidden: int,
    blocks: int = 2,
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(len(lengths), frames, inputs, dtype=dtype, device=device, generator=generator)
        shift = normal(channels, dtype=dtype, device=device, generator=generator)
        w = _weights(_stage_shapes(inputs, channels, heads * width, hidden, blocks), dtype, device, generator)
        n = torch.tensor(lengths, dtype=torch.int64, device=device)
        return {"x": _padded(x, lengths, 1), "n": n, "shift": shift, "heads": heads, **w}

    return Case(name, make)


def _run_stage(function: Any, x: Tensor, n: Tensor, shift: Tensor, heads: int, **w: Tensor) -> Tensor:
    return function(x, n, shift, _stage_weights(heads, w))  # type: ignore[no-any-return]


def _block_case(
    name: str, lengths: list[int], frames: int, channels: int, heads: int, width: int, hidden: int
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(len(lengths), frames, channels, dtype=dtype, device=device, generator=generator)
        shapes = _stage_shapes(channels, channels, heads * width, hidden, 1)
        w = _weights({name: shapes[name] for name in shapes if name[-1] == "0"}, dtype, device, generator)
        return {"x": x, "n": torch.tensor(lengths, dtype=torch.int64, device=device), "heads": heads, **w}

    return Case(name, make)


def _run_block(function: Any, x: Tensor, n: Tensor, heads: int, **w: Tensor) -> Tensor:
    """What lies beyond a row's own frames is undefined: it is set to 0."""
    y = function(x, n, _block_weights(w, 0), heads)
    return y.masked_fill(
        (torch.arange(x.shape[1], device=x.device, dtype=torch.int64) >= n[:, None])[:, :, None], 0
    )  # type: ignore[no-any-return]


def _conv_case(
    name: str,
    lengths: list[int],
    frames: int,
    inputs: int,
    outputs: int,
    taps: int,
    pad: int,
    stride: int = 1,
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(len(lengths), frames, inputs, dtype=dtype, device=device, generator=generator)
        w = _weights({"weight": (outputs, inputs, taps), "bias": (outputs,)}, dtype, device, generator)
        n = torch.tensor(lengths, dtype=torch.int64, device=device)
        return {"x": _padded(x, lengths, 1), "n": n, "pad": pad, "stride": stride, **w}

    return Case(name, make)


def _run_conv(
    function: Any, x: Tensor, n: Tensor, pad: int, stride: int, weight: Tensor, bias: Tensor
) -> Tensor:
    return function(x, n, frame_conv.FrameConvWeights(weight, bias, pad, stride))  # type: ignore[no-any-return]


def _unit_case(
    name: str,
    n: list[int],
    columns: int,
    channels: int,
    taps: int,
    dilation: int,
    edges: list[tuple[int, int]] | None = None,
) -> Case:
    """edges: position of column 0 and number of positions of each row, None: nothing is clipped."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        half = taps // 2
        shape = {"dtype": dtype, "device": device, "generator": generator}
        shapes = {
            "first": (channels, channels, taps),
            "b1": (channels,),
            "second": (channels, channels, taps),
            "b2": (channels,),
        }
        x = _padded(rows(len(n), channels, columns, **shape), n, 2)  # type: ignore[arg-type]
        history = rows(len(n), channels, 2 * half * dilation, **shape)  # type: ignore[arg-type]
        inner = rows(len(n), channels, 2 * half, **shape)  # type: ignore[arg-type]
        alpha, beta = (1 + 0.3 * normal(channels, **shape) for _ in range(2))  # type: ignore[arg-type]
        bounds = (
            None
            if edges is None
            else tuple(
                torch.tensor(part, device=device, dtype=torch.int64) for part in zip(*edges, strict=True)
            )
        )
        w = _weights(shapes, dtype, device, generator)
        lengths = torch.tensor(n, dtype=torch.int64, device=device)
        return {"x": x, "history": history, "inner": inner, "n": lengths, "bounds": bounds, "alpha": alpha, "beta": beta,
                "dilation": dilation, **w}  # fmt: skip

    return Case(name, make)


def _run_unit(
    function: Any, x: Tensor, history: Tensor, inner: Tensor, n: Tensor, bounds: residual.StreamEdges | None,
    alpha: Tensor, beta: Tensor, dilation: int, first: Tensor, b1: Tensor, second: Tensor, b2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run a streaming convolution; the undefined columns beyond a row's own are set to 0."""
    weights = residual.ResidualWeights(alpha, first, b1, beta, second, b2, dilation)
    y, *after = function(x, history, inner, n, weights, bounds)
    outside = torch.arange(x.shape[-1], device=x.device, dtype=torch.int64) >= n[:, None]
    return y.masked_fill(outside[:, None], 0), after[0], after[1]


def _stream_conv_case(
    name: str, n: list[int], columns: int, channels: int, out: int, taps: int, stride: int = 1,
    dilation: int = 1, transposed: bool = False, slope: float = 1.0,
    edges: list[tuple[int, int]] | None = None,
) -> Case:  # fmt: skip
    """edges as in _unit_case, of the result."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        shape = (channels, out, taps) if transposed else (out, channels, taps)
        w = _weights({"weight": shape, "bias": (out,)}, dtype, device, generator)
        past = stream_conv.StreamConvWeights(w["weight"], None, stride, dilation, transposed).past
        x = _padded(rows(len(n), channels, columns, dtype=dtype, device=device, generator=generator), n, 2)
        state = rows(len(n), channels, past, dtype=dtype, device=device, generator=generator)
        bounds = (
            None
            if edges is None
            else tuple(
                torch.tensor(part, device=device, dtype=torch.int64) for part in zip(*edges, strict=True)
            )
        )
        return {"x": x, "state": state, "n": torch.tensor(n, dtype=torch.int64, device=device), "bounds": bounds,
                "layer": (stride, dilation, transposed, slope), **w}  # fmt: skip

    return Case(name, make)


def run_stream_conv(
    function: Any, x: Tensor, state: Tensor, n: Tensor, bounds: residual.StreamEdges | None,
    layer: tuple[int, int, bool, float], weight: Tensor, bias: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run a streaming convolution; the undefined columns beyond a row's own are set to 0."""
    weights = stream_conv.StreamConvWeights(weight, bias, *layer)
    y, after = function(x, state, n, weights, bounds)
    ends = n * weights.stride if weights.is_transposed else n // weights.stride
    return y.masked_fill(
        (torch.arange(y.shape[-1], device=x.device, dtype=torch.int64) >= ends[:, None])[:, None], 0
    ), after


def _whole_conv_case(
    name: str, shape: tuple[int, int, int], out: int, taps: int, padding: int, stride: int = 1,
    transposed: bool = False, slope: float = 1.0,
) -> Case:  # fmt: skip
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        w = _weights(
            {"weight": (shape[1], out, taps) if transposed else (out, shape[1], taps), "bias": (out,)},
            dtype,
            device,
            generator,
        )
        x = rows(*shape, dtype=dtype, device=device, generator=generator)
        return {"x": x, "padding": padding, "layer": (stride, 1, transposed, slope), **w}

    return Case(name, make)


def run_whole_conv(
    function: Any, x: Tensor, padding: int, layer: tuple[int, int, bool, float], weight: Tensor, bias: Tensor
) -> Tensor:
    """A case of whole_conv by one of its implementations."""
    return function(x, stream_conv.StreamConvWeights(weight, bias, *layer), padding)  # type: ignore[no-any-return]


def _norm_case(
    name: str, lengths: list[int], channels: int, frames: int, groups: int, offset: float = 0.0
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(len(lengths), channels, frames, dtype=dtype, device=device, generator=generator) + offset
        weight, bias = (normal(channels, dtype=dtype, device=device, generator=generator) for _ in range(2))
        n = torch.tensor(lengths, dtype=torch.int64, device=device)
        return {"x": _padded(x, lengths, 2), "n": n, "weight": weight, "bias": bias, "groups": groups}

    return Case(name, make)


def _relative_case(
    name: str, batch: int, heads: int, queries: int, keys: int, width: int, num_blind: int = 0
) -> Case:
    """Every row sees keys of its own, the last num_blind queries none; keys that no query sees hold large
    numbers.
    """

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        shape = {"dtype": dtype, "device": device, "generator": generator}
        q = rows(batch, heads, queries, width, **shape)  # type: ignore[arg-type]
        k, v = (rows(batch, heads, keys, width, **shape) for _ in range(2))  # type: ignore[arg-type]
        positions = rows(heads, keys + queries - 1, width, **shape)  # type: ignore[arg-type]
        bias_u, bias_v = (rows(heads, width, **shape) for _ in range(2))  # type: ignore[arg-type]
        visible = (
            torch.rand(batch, queries, keys, generator=on_host(generator), dtype=torch.float32, device="cpu")
            < 0.7
        )
        visible[..., 0] = True
        visible[..., keys // 2] = keys < 3
        visible[:, queries - num_blind :] = False
        k[:, :, keys // 2] = 100 if keys >= 3 else k[:, :, keys // 2]
        return {
            "q": q,
            "k": k,
            "v": v,
            "bias_u": bias_u,
            "bias_v": bias_v,
            "positions": positions,
            "visible": visible.to(device),
        }

    return Case(name, make)


def _layer_case(
    name: str, tokens: int, cached: int, heads: int, width: int, hidden: int, closed: list[int]
) -> Case:
    """Rows that keep so many of their tokens."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        size, batch = heads * width, len(closed)
        shape = {"dtype": dtype, "device": device, "generator": generator}
        x = rows(batch, tokens, size, **shape)  # type: ignore[arg-type]
        cache = rows(batch, cached, 2, size, **shape)  # type: ignore[arg-type]
        visible = (
            torch.rand(
                batch,
                tokens,
                cached + tokens,
                generator=on_host(generator),
                dtype=torch.float32,
                device="cpu",
            )
            < 0.7
        )
        shapes = {
            "norm": (size,), "b1": (size,), "qkv": (3 * size, size), "b2": (3 * size,), "out": (size, size),
            "b3": (size,), "norm_ffn": (size,), "b4": (size,), "up": (hidden, size), "b5": (hidden,),
            "down": (size, hidden), "b6": (size,), "positions": (heads, cached + 2 * tokens - 1, width),
            "bias_u": (heads, width), "bias_v": (heads, width),
        }  # fmt: skip
        w = _weights(shapes, dtype, device, generator)
        kept = torch.tensor(closed, dtype=torch.int64, device=device)
        return {"x": x, "cache": cache, "visible": visible.to(device), "closed": kept, **w}

    return Case(name, make)


def layer_weights(w: dict[str, Tensor]) -> relative_layer.RelativeLayer:
    """The weights of a case's layer, by name."""
    norm, qkv, out, norm_ffn, up, down = (
        (w[name], w[f"b{i}"]) for i, name in enumerate(("norm", "qkv", "out", "norm_ffn", "up", "down"), 1)
    )
    return relative_layer.RelativeLayer(
        norm, qkv, w["bias_u"], w["bias_v"], out, norm_ffn, up, down, w["positions"]
    )


def run_layer(
    function: Any, x: Tensor, cache: Tensor, visible: Tensor, closed: Tensor, **w: Tensor
) -> tuple[Tensor, Tensor]:
    """A case's layer by one of its implementations."""
    return function(x, cache, layer_weights(w), visible, closed)  # type: ignore[no-any-return]


# A chunk of 26 tokens with its whole look-back: 887 frames, of both guidance branches.
_WINDOW = 887

OPS = (
    Op("flow_block", lambda **given: _run_block(flow_block.flow_block, **given),
       lambda **given: _run_block(flow_block.flow_block_ref, **given), (
        _block_case("tiny", [37, 5], 37, 32, 2, 16, 64), _block_case("one frame", [1], 1, 16, 1, 16, 16),
        _block_case("primes", [53, 0], 53, 13, 3, 5, 29), _block_case("wide", [37], 39, 80, 2, 32, 96),
        _block_case("empty", [], 4, 16, 1, 16, 16),
    ), real=(_block_case("first", [_WINDOW] * 2, _WINDOW, 256, 8, 64, 1024),)),
    Op("flow_stage", lambda **given: _run_stage(flow_stage.flow_stage, **given),
       lambda **given: _run_stage(flow_stage.flow_stage_ref, **given), (
        _stage_case("tiny", [37, 5, 1], 37, 320, 32, 2, 16, 64),
        _stage_case("a row of none", [13, 0], 16, 32, 16, 1, 16, 16, 1),
        _stage_case("primes", [53], 53, 8, 8, 2, 4, 24),
        _stage_case("more than a panel", [97, 61], 101, 48, 80, 3, 32, 112, 1),
        _stage_case("no transformer", [50], 50, 16, 32, 1, 16, 16, 0),
        _stage_case("empty", [], 4, 16, 16, 1, 16, 16, 1),
    ), real=(_stage_case("first", [_WINDOW] * 2, _WINDOW, 320, 256, 8, 64, 1024, 4),
             _stage_case("middle", [444] * 2, 444, 256, 256, 8, 64, 1024, 4))),
    Op("frame_conv", lambda **given: _run_conv(frame_conv.frame_conv, **given),
       lambda **given: _run_conv(frame_conv.frame_conv_ref, **given), (
        _conv_case("same", [17, 4], 19, 16, 32, 3, 1), _conv_case("one frame", [1], 1, 16, 16, 3, 1),
        _conv_case("half", [19, 8, 0], 19, 16, 16, 3, 1, 2), _conv_case("primes", [101], 103, 7, 13, 5, 3),
        _conv_case("point", [49], 49, 80, 256, 1, 0), _conv_case("empty", [], 3, 16, 16, 3, 1),
    ), real=(_conv_case("half", [_WINDOW] * 2, _WINDOW, 256, 256, 3, 1, 2),)),
    Op("stream_residual", lambda **given: _run_unit(residual.stream_residual, **given),
       lambda **given: _run_unit(residual.stream_residual_ref, **given), (
        _unit_case("model", [70, 0, 33], 70, 32, 7, 3),
        _unit_case("edges", [40, 40], 40, 16, 11, 5, [(-30, 21), (900, 1 << 40)]),
        _unit_case("primes", [197, 13], 199, 13, 3, 1, [(5, 150), (-7, 9)]),
        _unit_case("few columns", [1, 2], 2, 8, 11, 5), _unit_case("one tap", [9], 9, 4, 1, 1),
        _unit_case("pieces", [500], 500, 48, 5, 2),
        _unit_case("narrow", [700, 90], 700, 16, 11, 5, [(-80, 600), (3, 1 << 40)]),
        _unit_case("empty", [], 5, 16, 3, 1),
    ), real=(_unit_case("256 channels", [8 * 179], 8 * 179, 256, 7, 3),
             _unit_case("128 channels", [64 * 179], 64 * 179, 128, 11, 5))),
    Op("stream_conv", lambda **given: run_stream_conv(stream_conv.stream_conv, **given),
       lambda **given: run_stream_conv(stream_conv.stream_conv_ref, **given), (
        _stream_conv_case("one", [1], 1, 1, 1, 1), _stream_conv_case("first", [9, 0, 4], 9, 20, 35, 7),
        _stream_conv_case("few results", [101, 3], 101, 24, 9, 7, slope=0.01, edges=[(-3, 70), (2, 1 << 40)]),
        _stream_conv_case("up", [13, 5], 13, 24, 12, 16, 8, transposed=True, slope=0.1, edges=[(-9, 60), (7, 1 << 40)]),
        _stream_conv_case("down", [96, 40], 96, 9, 20, 16, 8),
        _stream_conv_case("point", [30], 30, 18, 16, 1),
        _stream_conv_case("dilated", [40, 7], 40, 6, 40, 3, dilation=5),
        _stream_conv_case("uneven", [30, 12], 30, 7, 5, 4, 3, 2),
        _stream_conv_case("uneven up", [11], 11, 5, 7, 8, 3, transposed=True),
        _stream_conv_case("pieces", [700], 700, 40, 18, 3), _stream_conv_case("empty", [], 4, 16, 8, 3),
    ), real=(_stream_conv_case("up, 256 channels", [8 * 179], 8 * 179, 256, 128, 16, 8, transposed=True, slope=0.1),
             _stream_conv_case("last", [64 * 179], 64 * 179, 128, 18, 7, slope=0.01))),
    Op("whole_conv", lambda **given: run_whole_conv(stream_conv.whole_conv, **given),
       lambda **given: run_whole_conv(stream_conv.whole_conv_ref, **given), (
        _whole_conv_case("one", (1, 1, 1), 1, 1, 0), _whole_conv_case("first", (2, 13, 31), 19, 7, 3),
        _whole_conv_case("down", (2, 9, 41), 20, 8, 2, 4),
        _whole_conv_case("up", (1, 24, 9), 12, 16, 4, 8, transposed=True, slope=0.1),
        _whole_conv_case("shorter than its reach", (1, 16, 2), 6, 7, 3, slope=0.01),
    )),
    Op("group_norm_mish", groupnorm.group_norm_mish, groupnorm.group_norm_mish_ref, (
        _norm_case("one", [1], 8, 1, 8), _norm_case("primes", [131, 7, 0], 15, 137, 3),
        _norm_case("one group", [40], 80, 41, 1), _norm_case("far from 0", [300], 16, 300, 4, 30.0),
        _norm_case("empty", [], 8, 5, 2),
    ), real=(_norm_case("stage", [_WINDOW] * 2, 256, _WINDOW, 8),
             _norm_case("regulator", [_WINDOW], 80, _WINDOW, 1))),
    Op("relative_attention", relative.relative_attention, relative.relative_attention_ref, (
        _relative_case("one", 1, 1, 1, 1, 16), _relative_case("primes", 2, 3, 7, 19, 16),
        _relative_case("wide", 1, 2, 35, 67, 64), _relative_case("empty", 0, 2, 3, 5, 16),
        _relative_case("blind queries", 2, 2, 9, 19, 16, 3),
    ), real=(_relative_case("chunk", 1, 8, 35, 155, 64),)),
    Op("relative_layer", lambda **given: run_layer(relative_layer.relative_layer, **given),
       lambda **given: run_layer(relative_layer.relative_layer_ref, **given), (
        _layer_case("tiny", 35, 120, 4, 16, 96, [20, 30]), _layer_case("one token", 1, 0, 1, 16, 8, [0]),
        _layer_case("more than a panel", 103, 20, 3, 32, 40, [90, 7, 0]),
        _layer_case("narrow heads", 7, 11, 2, 8, 24, [5, 7]), _layer_case("empty", 3, 5, 2, 16, 16, []),
    ), real=(_layer_case("chunk", 35, 120, 8, 64, 2048, [30]),)),
)  # fmt: skip
