"""Cases of the residual-VQ codecs' ops."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.residual_vq import elu_unit, rvq, taps, window_layer, windowed
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, fresh, normal, on_host, rows


def _decode_case(
    name: str, shape: tuple[int, int], sizes: tuple[int, ...], codes: int, width: int, out: int = 0
) -> Case:
    """shape: sounds and frames; out 0: no projection."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        (batch, steps), num = shape, sum(sizes)
        ids = torch.randint(
            0, codes, (batch, num, steps), generator=on_host(generator), dtype=torch.int64, device="cpu"
        ).to(device)
        table = normal(num, codes, width, dtype=dtype, device=device, generator=generator)
        inputs: Inputs = {"ids": ids, "codes": table, "sizes": sizes}
        if out:
            project = normal(len(sizes), out, width, dtype=dtype, device=device, generator=generator)
            inputs |= {
                "project": project * width**-0.5,
                "bias": normal(out, dtype=dtype, device=device, generator=generator),
            }
        return inputs

    return Case(name, make)


def _decode(
    ids: Tensor,
    codes: Tensor,
    sizes: tuple[int, ...],
    project: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    return rvq.rvq_decode(ids, rvq.Codebooks(codes, sizes, project, bias))


def _decode_ref(
    ids: Tensor,
    codes: Tensor,
    sizes: tuple[int, ...],
    project: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    return rvq.rvq_decode_ref(ids, rvq.Codebooks(codes, sizes, project, bias))


def _encode_case(
    name: str, batch: int, steps: int, books: int, codes: int, width: int, skip: int = 0
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(batch, steps, width, dtype=dtype, device=device, generator=generator, skip=skip)
        return {"x": x, "codes": normal(books, codes, width, dtype=dtype, device=device, generator=generator)}

    return Case(name, make)


def _ring_case(
    name: str,
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    heads: int,
    groups: int,
    width: int,
    window: int,
    store: bool,
) -> Case:
    """One row a start, with its count of at most max(counts) tokens; slots are in reverse, one is free."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        num, tokens = len(starts), max(counts)
        size = window - 1 + tokens
        ring = normal(num + 1, 2, size, groups, width, dtype=dtype, device=device, generator=generator)
        places = {
            "slots": torch.arange(num, 0, -1, dtype=torch.int64, device="cpu"),
            "start": torch.tensor(starts, dtype=torch.int64, device="cpu"),
            "n": torch.tensor(counts, dtype=torch.int64, device="cpu"),
        }
        inputs: Inputs = {"ring": ring} | {key: value.to(device) for key, value in places.items()}
        if store:
            return inputs | {
                key: fresh_after(
                    normal(num, tokens, groups, width, dtype=dtype, device=device, generator=generator),
                    counts,
                )
                for key in ("k", "v")
            }
        return inputs | {
            "q": normal(num, tokens, heads, width, dtype=dtype, device=device, generator=generator),
            "window": window,
        }

    return Case(name, make)


def fresh_after(x: Tensor, counts: tuple[int, ...]) -> Tensor:
    """NaN in the columns that a row does not bring."""
    for row, count in zip(x, counts, strict=True):
        row[count:] = fresh(1, dtype=x.dtype, device=x.device)[0]
    return x


def _attend(q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int) -> Tensor:
    return _known(windowed.window_attention(q, ring, slots, start, n, window), n)


def _attend_ref(q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int) -> Tensor:
    return _known(windowed.window_attention_ref(q, ring, slots, start, n, window), n)


def _known(y: Tensor, n: Tensor) -> Tensor:
    """Zeros where the result is undefined."""
    beyond = torch.arange(y.shape[1], device=y.device, dtype=torch.int64) >= n[:, None]
    return y.masked_fill(beyond[..., None, None], 0)


def _taps_case(
    name: str,
    batch: int,
    time: int,
    channels: int,
    out: int,
    width: int,
    dilation: int = 1,
    up: int = 1,
    past: int = 0,
) -> Case:
    """past: columns that are given beside the others."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = normal(batch, time, channels, dtype=dtype, device=device, generator=generator)
        weight = (
            normal(width, channels, out, dtype=dtype, device=device, generator=generator)
            * (width * channels) ** -0.5
        )
        before = (
            normal(batch, past, channels, dtype=dtype, device=device, generator=generator) if past else None
        )
        return {"x": x, "weight": weight, "bias": normal(out, dtype=dtype, device=device, generator=generator),
                "dilation": dilation, "up": up, "before": before}  # fmt: skip

    return Case(name, make)


def _apply(
    function: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int, up: int, before: Tensor | None
) -> Tensor:
    return function(x, taps.Taps(weight, bias, dilation, up=up), before)  # type: ignore[no-any-return]


def _unit_case(
    name: str, batch: int, time: int, channels: int, inner: int, width: int, dilation: int = 1, past: int = 0,
    shortcut: bool = False, elu: bool = True,
) -> Case:  # fmt: skip
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        def made(*shape: int) -> Tensor:
            return normal(*shape, dtype=dtype, device=device, generator=generator)

        inputs: Inputs = {"x": made(batch, time, channels), "dilation": dilation, "elu": elu}
        inputs["before"] = made(batch, past, channels) if past else None
        inputs["wide"] = made(width, channels, inner) * (width * channels) ** -0.5
        inputs["narrow"] = made(1, inner, channels) * inner**-0.5
        inputs["shortcut"] = made(1, channels, channels) * channels**-0.5 if shortcut else None
        return inputs | {"wide_bias": 0.1 * made(inner), "narrow_bias": 0.1 * made(channels)}

    return Case(name, make)


def run_unit(
    function: Any, x: Tensor, before: Tensor | None, wide: Tensor, wide_bias: Tensor, narrow: Tensor,
    narrow_bias: Tensor, shortcut: Tensor | None, dilation: int, elu: bool,
) -> Tensor:  # fmt: skip
    """Run a function with the arguments of elu_unit."""
    beside = None if shortcut is None else taps.Taps(shortcut, None)
    unit = elu_unit.EluUnit(taps.Taps(wide, wide_bias, dilation), taps.Taps(narrow, narrow_bias), beside)
    return function(x, unit, before, elu)  # type: ignore[no-any-return]


def _layer_case(
    name: str, starts: tuple[int, ...], counts: tuple[int, ...], size: int, heads: int, groups: int,
    width: int, hidden: int, window: int, bias: bool = False,
) -> Case:  # fmt: skip
    """Rows and slots as in _ring_case."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        def made(*shape: int) -> Tensor:
            return normal(*shape, dtype=dtype, device=device, generator=generator)

        num, tokens = len(starts), max(counts, default=1)
        angle = (
            torch.rand(
                num * tokens, width // 2, generator=on_host(generator), dtype=torch.float32, device="cpu"
            ).to(device, dtype)
            * 6
        )
        places = {
            "slots": torch.arange(num, 0, -1, dtype=torch.int64, device="cpu"),
            "start": torch.tensor(starts, dtype=torch.int64, device="cpu"),
            "n": torch.tensor(counts, dtype=torch.int64, device="cpu"),
        }
        inputs: Inputs = {key: value.to(device, torch.int64) for key, value in places.items()}
        inputs |= {"x": fresh_after(made(num, tokens, size), counts), "cos": angle.cos(), "sin": angle.sin()}
        inputs["ring"] = made(num + 1, 2, window - 1 + tokens, groups, width)
        for name in ("norm", "norm_ffn"):
            inputs |= {name: 1 + 0.1 * made(size), f"{name}_b": 0.1 * made(size)}
        shapes = {
            "qkv": ((heads + 2 * groups) * width, size),
            "out": (size, heads * width),
            "up": (hidden, size),
            "down": (size, hidden),
        }
        for name, shape in shapes.items():
            inputs |= {
                name: made(*shape) * shape[1] ** -0.5,
                f"{name}_b": 0.1 * made(shape[0]) if bias else None,
            }
        inputs |= {"scale": 0.4 + 0.1 * made(size), "scale_ffn": 0.4 + 0.1 * made(size)}
        return inputs | {"heads": heads, "groups": groups, "window": window}

    return Case(name, make)


def run_layer(
    function: Any, x: Tensor, ring: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, start: Tensor, n: Tensor,
    scale: Tensor, scale_ffn: Tensor, heads: int, groups: int, window: int, **parts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y, zeros where it is undefined, and a ring, of a function with the arguments of window_layer."""
    norm, qkv, out, norm_ffn, up, down = ((parts[name], parts[f"{name}_b"]) for name in _PAIRS)
    layer = window_layer.WindowLayer(
        norm, qkv, out, scale, norm_ffn, up, down, scale_ffn, heads, groups, window, 1e-5
    )
    ring = ring.clone()
    y = function(x, layer, ring, window_layer.RingRows(slots, start, n, cos, sin))
    beyond = torch.arange(y.shape[1], device=y.device, dtype=torch.int64) >= n[:, None]
    return y.masked_fill(beyond[..., None], 0), ring


_PAIRS = ("norm", "qkv", "out", "norm_ffn", "up", "down")

OPS = (
    Op("rvq_decode", _decode, _decode_ref, (
        _decode_case("one", (1, 1), (1,), 1, 1), _decode_case("no projection", (2, 19), (5,), 13, 70),
        _decode_case("two groups", (2, 7), (1, 4), 11, 40, 67),
        _decode_case("own projections", (1, 18), (1, 1, 1), 9, 8, 33),
        _decode_case("empty", (0, 3), (2,), 4, 8),
    ), real=(
        _decode_case("Mimi, a frame", (16, 1), (1, 31), 2048, 256, 512),
        _decode_case("DAC, 1 s", (1, 86), (1,) * 9, 1024, 8, 1024),
        _decode_case("EnCodec, 1 s", (1, 75), (8,), 1024, 128),
    )),
    Op("rvq_encode", rvq.rvq_encode, rvq.rvq_encode_ref, (
        _encode_case("one", 1, 1, 1, 1, 1), _encode_case("primes", 2, 17, 3, 71, 37),
        _encode_case("narrow", 1, 5, 2, 130, 8), _encode_case("wide rows", 2, 3, 2, 20, 16, skip=8),
        _encode_case("empty", 0, 4, 2, 8, 8),
    ), real=(_encode_case("Mimi, a frame", 16, 1, 31, 2048, 256),
             _encode_case("EnCodec, 1 s", 1, 75, 8, 1024, 128))),
    Op("store_window", windowed.store_window, windowed.store_window_ref, (
        _ring_case("wrap", (0, 11, 5), (3, 1, 0), 2, 2, 8, 6, store=True),
        _ring_case("odd", (40,), (5,), 3, 1, 7, 9, store=True),
    ), mutates=("ring",)),
    Op("window_attention", _attend, _attend_ref, (
        _ring_case("wrap", (5, 11, 105), (3, 1, 2), 2, 2, 8, 6, store=False),
        _ring_case("begins", (0, 0), (4, 1), 4, 2, 16, 9, store=False),
        _ring_case("tiles", (70, 3), (37, 18), 2, 1, 24, 40, store=False),
    ), real=(_ring_case("Mimi, a frame", (1000,) * 16, (2,) * 16, 8, 8, 64, 250, store=False),)),
    Op("apply_taps", partial(_apply, taps.apply_taps), partial(_apply, taps.apply_taps_ref), (
        _taps_case("one", 1, 1, 1, 1, 1), _taps_case("primes", 3, 29, 7, 5, 3),
        _taps_case("few channels", 2, 19, 1, 13, 7), _taps_case("few results", 2, 19, 13, 1, 7),
        _taps_case("dilated", 2, 31, 6, 8, 3, dilation=4), _taps_case("transposed", 2, 9, 6, 12, 2, up=3),
        _taps_case("empty", 0, 9, 6, 12, 2), _taps_case("stream", 3, 5, 17, 35, 3, dilation=2, past=4),
        _taps_case("pieces", 2, 211, 65, 33, 2, past=1), _taps_case("deep", 1, 7, 300, 50, 2, past=1),
        _taps_case("a mono sound", 2, 101, 1, 16, 7, past=6), _taps_case("to mono", 2, 101, 37, 1, 3, past=2),
        _taps_case("one step", 1, 1, 8, 8, 4, past=3),
    ), real=(_taps_case("Mimi, last stage", 1, 1922, 64, 32, 3),
             _taps_case("Mimi, first up", 1, 3, 1024, 4096, 2, up=8))),
    Op("elu_unit", partial(run_unit,
    elu_unit.elu_unit), partial(run_unit, elu_unit.elu_unit_ref), (
        _unit_case("one", 1, 1, 1, 1, 1), _unit_case("primes", 3, 29, 7, 5, 3, past=2, elu=False),
        _unit_case("dilated", 2, 3, 16, 8, 3, dilation=4, past=8),
        _unit_case("pieces", 2, 307, 24, 12, 3, past=2),
        _unit_case("shortcut", 2, 17, 32, 16, 3, past=2, shortcut=True),
        _unit_case("whole", 1, 40, 20, 40, 5), _unit_case("empty", 0, 9, 6, 3, 2),
    ), real=(_unit_case("Mimi, last stage", 1, 1920, 64, 32, 3, past=2),
             _unit_case("16 x Mimi", 16, 96, 256, 128, 3, past=2))),
    Op("window_layer", partial(run_layer,
    window_layer.window_layer), partial(run_layer, window_layer.window_layer_ref), (
        _layer_case("begins", (0,), (1,), 16, 1, 1, 16, 32, 1),
        _layer_case("odd", (3, 0), (5, 2), 24, 2, 1, 8, 13, 6, True),
        _layer_case("wrap", (5, 31, 105), (3, 0, 2), 32, 4, 2, 16, 48, 7),
        _layer_case("tiles", (70, 3), (37, 18), 48, 2, 2, 32, 80, 40, True),
        _layer_case("long", (250,), (131,), 64, 2, 2, 32, 144, 100),
    ), real=(_layer_case("Mimi, a frame", (1000,) * 16, (2,) * 16, 512, 8, 8, 64, 2048, 250),)),
)  # fmt: skip
