"""Cases of the residual-VQ codecs' ops."""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels import rvq, taps, windowed
from innervoice_kernels.testing.case import Case, Device, Inputs, Op, fresh, normal, rows


def _decode_case(name: str, shape: tuple[int, int], sizes: tuple[int, ...], codes: int, width: int, out: int = 0) -> Case:
    """shape: sounds and frames; out 0: no projection."""

    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        (batch, steps), num = shape, sum(sizes)
        ids = torch.randint(0, codes, (batch, num, steps), generator=generator).to(device)
        table = normal(num, codes, width, dtype=dtype, device=device, generator=generator)
        inputs: Inputs = {"ids": ids, "codes": table, "sizes": sizes}
        if out:
            project = normal(len(sizes), out, width, dtype=dtype, device=device, generator=generator)
            inputs |= {"project": project * width**-0.5, "bias": normal(out, dtype=dtype, device=device, generator=generator)}
        return inputs

    return Case(name, make)


def _decode(
    ids: Tensor, codes: Tensor, sizes: tuple[int, ...], project: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return rvq.rvq_decode(ids, rvq.Codebooks(codes, sizes, project, bias))


def _decode_ref(
    ids: Tensor, codes: Tensor, sizes: tuple[int, ...], project: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return rvq.rvq_decode_ref(ids, rvq.Codebooks(codes, sizes, project, bias))


def _encode_case(name: str, batch: int, steps: int, books: int, codes: int, width: int, skip: int = 0) -> Case:
    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        x = rows(batch, steps, width, dtype=dtype, device=device, generator=generator, skip=skip)
        return {"x": x, "codes": normal(books, codes, width, dtype=dtype, device=device, generator=generator)}

    return Case(name, make)


def _ring_case(
    name: str, starts: tuple[int, ...], counts: tuple[int, ...], heads: int, groups: int, width: int, window: int, store: bool
) -> Case:
    """A row a start, its count of at most max(counts) tokens; slots are in reverse, one of them is nobody's."""

    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        num, tokens = len(starts), max(counts)
        size = window - 1 + tokens
        ring = normal(num + 1, 2, size, groups, width, dtype=dtype, device=device, generator=generator)
        places = {"slots": torch.arange(num, 0, -1), "start": torch.tensor(starts), "n": torch.tensor(counts)}
        inputs: Inputs = {"ring": ring} | {key: value.to(device) for key, value in places.items()}
        if store:
            return inputs | {
                key: fresh_after(normal(num, tokens, groups, width, dtype=dtype, device=device, generator=generator), counts)
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
    beyond = torch.arange(y.shape[1], device=y.device) >= n[:, None]
    return y.masked_fill(beyond[..., None, None], 0)


def _taps_case(name: str, batch: int, time: int, channels: int, out: int, width: int, dilation: int = 1, up: int = 1) -> Case:
    def make(dtype: torch.dtype, device: Device, generator: torch.Generator) -> Inputs:
        x = normal(batch, time, channels, dtype=dtype, device=device, generator=generator)
        weight = normal(width, channels, out, dtype=dtype, device=device, generator=generator) * (width * channels) ** -0.5
        return {"x": x, "weight": weight, "bias": normal(out, dtype=dtype, device=device, generator=generator),
                "dilation": dilation, "up": up}  # fmt: skip

    return Case(name, make)


def _apply(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, up: int) -> Tensor:
    return taps.apply_taps(x, taps.Taps(weight, bias, dilation, up=up))


def _apply_ref(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, up: int) -> Tensor:
    return taps.apply_taps_ref(x, taps.Taps(weight, bias, dilation, up=up))


OPS = (
    Op("rvq_decode", _decode, _decode_ref, (
        _decode_case("one", (1, 1), (1,), 1, 1), _decode_case("no projection", (2, 19), (5,), 13, 70),
        _decode_case("two groups", (2, 7), (1, 4), 11, 40, 67), _decode_case("own projections", (1, 18), (1, 1, 1), 9, 8, 33),
        _decode_case("empty", (0, 3), (2,), 4, 8),
    ), real=(
        _decode_case("Mimi, a frame", (16, 1), (1, 31), 2048, 256, 512),
        _decode_case("DAC, 1 s", (1, 86), (1,) * 9, 1024, 8, 1024),
        _decode_case("EnCodec, 1 s", (1, 75), (8,), 1024, 128),
    )),
    Op("rvq_encode", rvq.rvq_encode, rvq.rvq_encode_ref, (
        _encode_case("one", 1, 1, 1, 1, 1), _encode_case("primes", 2, 17, 3, 71, 37), _encode_case("narrow", 1, 5, 2, 130, 8),
        _encode_case("wide rows", 2, 3, 2, 20, 16, skip=8), _encode_case("empty", 0, 4, 2, 8, 8),
    ), real=(_encode_case("Mimi, a frame", 16, 1, 31, 2048, 256), _encode_case("EnCodec, 1 s", 1, 75, 8, 1024, 128))),
    Op("store_window", windowed.store_window, windowed.store_window_ref, (
        _ring_case("wrap", (0, 11, 5), (3, 1, 0), 2, 2, 8, 6, store=True), _ring_case("odd", (40,), (5,), 3, 1, 7, 9, store=True),
    ), mutates=("ring",)),
    Op("window_attention", _attend, _attend_ref, (
        _ring_case("wrap", (5, 11, 105), (3, 1, 2), 2, 2, 8, 6, store=False),
        _ring_case("begins", (0, 0), (4, 1), 4, 2, 16, 9, store=False),
        _ring_case("tiles", (70, 3), (37, 18), 2, 1, 24, 40, store=False),
    ), real=(_ring_case("Mimi, a frame", (1000,) * 16, (2,) * 16, 8, 8, 64, 250, store=False),)),
    Op("apply_taps", _apply, _apply_ref, (
        _taps_case("one", 1, 1, 1, 1, 1), _taps_case("primes", 3, 29, 7, 5, 3), _taps_case("few channels", 2, 19, 1, 13, 7),
        _taps_case("few results", 2, 19, 13, 1, 7), _taps_case("dilated", 2, 31, 6, 8, 3, dilation=4),
        _taps_case("transposed", 2, 9, 6, 12, 2, up=3), _taps_case("empty", 0, 9, 6, 12, 2),
    ), real=(_taps_case("Mimi, last stage", 1, 1922, 64, 32, 3), _taps_case("Mimi, first up", 1, 3, 1024, 4096, 2, up=8))),
)  # fmt: skip
