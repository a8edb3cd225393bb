"""The calls whose kernels are compiled ahead of time, on meta tensors: the step at GLM-4-Voice-9B's shapes, the codecs' own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.backend import use
from innervoice_kernels.jit import dependent_launches
from innervoice_kernels.language import (
    activation,
    attention,
    kvstore,
    kvstore_fp8,
    linear,
    linear_int4,
    linear_scaled,
    norm,
    qkv,
    rope,
    step_attention,
)
from innervoice_kernels.language.weight_formats import folded_width
from innervoice_kernels.residual_vq import elu_unit, rvq, taps, windowed
from innervoice_kernels.sampling import cursor, head, philox, sample_pick, step
from innervoice_kernels.sampling.cursor_columns import ProgramColumn
from innervoice_kernels.speech_codec import (
    flow_block,
    frame_conv,
    groupnorm,
    istft,
    mel,
    noise,
    relative,
    residual,
    source,
    stft,
    stream_conv,
    vq,
)

D, H, G, WIDTH, FFN, VOCABULARY = 4096, 32, 2, 128, 13696, 168960
QKV = (H + 2 * G) * WIDTH
EPS = 1.5625e-07
ROWS = (1, 16, 512)


@dataclass(frozen=True)
class Call:
    """An op's call at a shape."""

    name: str
    run: Callable[[], Any]


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def call(name: str, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    def run() -> None:
        with use("triton"):
            op(*args, **kwargs)

    return Call(name, run)


def dependent(calls: Iterable[Call]) -> list[Call]:
    """The same by programmatic dependent launch."""

    def of(inner: Call) -> Call:
        def run() -> None:
            with dependent_launches():
                inner.run()

        return Call(f"{inner.name}, dependent", run)

    return [of(inner) for inner in calls]


def elementwise(rows: int, dtype: torch.dtype) -> list[Call]:
    x, w, name = empty(rows, D, dtype=dtype), empty(D, dtype=dtype), f"{rows} rows"
    return [
        call(name, norm.rms_norm, x, w, EPS),
        call(name, norm.add_rms_norm, x, x, w, EPS),
        call(name, activation.silu_mul, empty(rows, 2 * FFN, dtype=dtype)),
    ]


def pages(page_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (4096, page_size, G, WIDTH)
    return empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)


def heads(rows: int, page_size: int, dtype: torch.dtype) -> list[Call]:
    x, name = empty(rows, QKV, dtype=dtype), f"{rows} rows, pages of {page_size}"
    cos, slots = empty(rows, WIDTH // 4, dtype=dtype), empty(rows, dtype=torch.int64)
    kv = pages(page_size, dtype)
    split = torch.unflatten(x, 1, (-1, WIDTH))
    return [
        call(name, qkv.qkv_rope_store, x, cos, cos, *kv, slots, True, bias=empty(QKV, dtype=dtype)),
        call(name, qkv.qkv_rope_store, x, cos, cos, *kv, slots, True),
        call(name, rope.rotary, split[:, :H], cos, cos, True),
        call(name, kvstore.store_kv, split[:, H : H + G], split[:, H + G :], *kv, slots),
    ]


def attend(rows: int, queries: int, page_size: int, dtype: torch.dtype, weighted: bool) -> Call:
    """queries 1: decode; more: rows of both kinds."""
    tokens = rows * queries
    q, kv = empty(tokens, H, WIDTH, dtype=dtype), pages(page_size, dtype)
    table = ints(rows, 4096 // page_size)
    tags = [ints(tokens), ints(4096, page_size), empty(tokens, dtype=torch.float32)] if weighted else []
    name = f"{rows} rows of {queries}, pages of {page_size}"
    return call(
        name,
        attention.paged_attention,
        q,
        *kv,
        table,
        ints(rows + 1),
        ints(rows),
        128**-0.5,
        *tags,
        max_queries=queries,
    )


def steps(rows: int, page_size: int, dtype: torch.dtype, weighted: bool = False, bias: bool = True) -> Call:
    """Rotation, keys and values into their pages, and attention of a decode step."""
    kv, cos = pages(page_size, dtype), empty(rows, WIDTH // 4, dtype=dtype)
    tags = (ints(rows), ints(4096, page_size), empty(rows, dtype=torch.float32)) if weighted else None
    return call(
        f"{rows} rows, pages of {page_size}",
        step_attention.step_attention,
        empty(rows, QKV, dtype=dtype),
        cos,
        cos,
        *kv,
        ints(rows, 4096 // page_size),
        ints(rows),
        128**-0.5,
        True,
        bias=empty(QKV, dtype=dtype) if bias else None,
        tags=tags,
    )


def fp8_cache(rows: int, queries: int, dtype: torch.dtype) -> list[Call]:
    """Storing into pages of fp8, and attention over them."""
    tokens, kv = rows * queries, pages(16, torch.float8_e4m3fn)
    q, new, name = (
        empty(tokens, H, WIDTH, dtype=dtype),
        empty(tokens, G, WIDTH, dtype=dtype),
        f"{rows} rows of {queries}, fp8",
    )
    scales = {f"{x}_scale": empty(4096, G, dtype=torch.float32) for x in ("k", "v")}
    batch = (ints(rows, 256), ints(rows + 1), ints(rows))
    return [
        call(
            name, kvstore_fp8.store_kv_fp8, new, new, *kv, *scales.values(), empty(tokens, dtype=torch.int64)
        ),
        call(name, attention.paged_attention, q, *kv, *batch, 128**-0.5, **scales, max_queries=queries),
    ]


def products(rows: int, dtype: torch.dtype) -> list[Call]:
    """The four products of a layer, as the step fuses them."""
    x, wide, norm_of = (
        empty(rows, D, dtype=dtype),
        empty(rows, FFN, dtype=dtype),
        linear.Norm(empty(D, dtype=dtype), EPS),
    )
    weights = [empty(*shape, dtype=dtype) for shape in ((QKV, D), (D, D), (2 * FFN, D), (D, FFN))]
    return [
        call(f"qkv, {rows} rows", linear.linear, x, weights[0], empty(QKV, dtype=dtype), norm=norm_of),
        call(f"qkv, {rows} rows, bare", linear.linear, x, weights[0]),
        call(f"out, {rows} rows", linear.linear, x, weights[1], residual=x),
        call(f"gate and up, {rows} rows", linear.gated_linear, x, weights[2], norm_of),
        call(f"down, {rows} rows", linear.linear, wide, weights[3], residual=x),
    ]


def quantised(rows: int, dtype: torch.dtype, label: str, *formats: str) -> list[Call]:
    """A product over quantised weights, laid out as for the GPU: int4 scales and minima group by group, codes folded."""
    norm_of = linear.Norm(empty(D, dtype=dtype), EPS)
    products: dict[str, tuple[int, int, dict[str, Any]]] = {
        "qkv": (QKV, D, {"norm": norm_of}),
        "prompt's qkv": (QKV, D, {"bias": empty(QKV, dtype=dtype)}),
        "gate and up": (2 * FFN, D, {"norm": norm_of, "gated": True}),
        "down": (D, FFN, {"residual": empty(rows, D, dtype=dtype)}),
    }
    n, k, more = products[label]
    x, codes4, scale = (
        empty(rows, k, dtype=dtype),
        empty(n, folded_width(k), dtype=torch.uint8),
        empty(n, dtype=torch.float32),
    )
    made = []
    for name in formats:
        title = f"{label}, {rows} rows, {name}"
        if name in ("int8", "fp8"):
            codes = empty(n, k, dtype=torch.int8 if name == "int8" else torch.float8_e4m3fn)
            made.append(call(title, linear_scaled.scaled_linear, x, codes, scale, **more))
            continue
        kind, group = name.split()
        steps, low = (empty(k // int(group), n, dtype=torch.float16).t() for _ in range(2))
        args = (x, codes4, steps, None if kind == "symmetric" else low, int(group))
        made.append(call(title, linear_int4.int4_linear, *args, folded=True, **more))
    return made


def end_of_step(rows: int, dtype: torch.dtype, invariant: bool) -> Call:
    """What may be drawn, the head, the draws, the cursors."""
    meta = torch.device("meta")
    programs = cursor.Programs(
        ints(64, ProgramColumn.WIDTH), ints(64), empty(4, 3, dtype=torch.float32), ints(1 << 19)
    )
    made = cursor.Rows.allocate(rows, 32, meta, programs.sets)
    offers = sample_pick.Offers.allocate(rows, VOCABULARY, cursor.SLOTS, meta)
    x, w = empty(rows, D, dtype=dtype), empty(VOCABULARY, D, dtype=dtype)

    def run() -> None:
        cursor.prepare(made, programs)
        head.head_step(x, w, made, programs, offers, invariant=invariant)

    return Call(f"{rows} rows", run)


def ends(rows: int, dtype: torch.dtype) -> Call:
    """What rows feed into a step, and what they keep of it."""
    meta = torch.device("meta")
    feed, inputs = (
        step.RowFeed.allocate(rows, 512, meta),
        step.StepInputs.allocate(rows, D, WIDTH // 4, dtype, meta),
    )
    made, ring = cursor.Rows.allocate(rows, 32, meta), step.Ring.allocate(64, rows, meta)
    embedding, angles = empty(VOCABULARY, D, dtype=dtype), empty(8192, WIDTH // 4, dtype=dtype)

    def run() -> None:
        with use("triton"):
            step.begin_step(feed, made.state, embedding, angles, angles, ints(4096, 16), inputs)
            step.end_step(feed, made, ring)

    return Call(f"{rows} rows", run)


def cursors(rows: int) -> Call:
    """Cursors that take what was drawn elsewhere."""
    made = cursor.Rows.allocate(rows, 32, torch.device("meta"))
    programs = cursor.Programs(
        ints(64, ProgramColumn.WIDTH), ints(64), empty(4, 3, dtype=torch.float32), ints(1 << 19)
    )
    drawn, logprob = ints(rows, cursor.SLOTS), empty(rows, cursor.SLOTS, dtype=torch.float32)
    return Call(f"{rows} rows", lambda: cursor.advance(made, programs, drawn, logprob))


def draws(rows: int) -> Call:
    """Logits that are there already."""
    meta = torch.device("meta")
    offers = sample_pick.Offers.allocate(rows, VOCABULARY, cursor.SLOTS, meta)
    made = cursor.Draws.allocate(rows * cursor.SLOTS, meta, ints(1 << 19))

    def run() -> None:
        sample_pick.summary(offers, made, cursor.SLOTS)
        sample_pick.pick(offers, made, cursor.SLOTS)

    return Call(f"{rows} rows of logits", run)


def residual_vq(dtype: torch.dtype) -> list[Call]:
    """The quantisers of Mimi, EnCodec 24 kHz and DAC."""
    made = []
    for name, rows, sizes, codes, width, out in (
        ("Mimi", 16, (1, 31), 2048, 256, 512), ("EnCodec", 75, (32,), 1024, 128, 0), ("DAC", 86, (1,) * 9, 1024, 8, 1024),
    ):  # fmt: skip
        num, table = sum(sizes), empty(sum(sizes), codes, width, dtype=dtype)
        project, bias = (
            (empty(len(sizes), out, width, dtype=dtype), empty(out, dtype=dtype)) if out else (None, None)
        )
        codebooks = rvq.Codebooks(table, sizes, project, bias if out == 1024 else None)
        name = f"{name}, {str(dtype)[6:]}"
        made.append(call(name, rvq.rvq_decode, empty(1, num, rows, dtype=torch.int64), codebooks))
        if out != 1024:
            made.append(call(name, rvq.rvq_encode, empty(1, rows, width, dtype=dtype), table))
    return made


def windows(rows: int, tokens: int, dtype: torch.dtype) -> list[Call]:
    """Mimi's transformer: 8 heads of 64, a window of 250."""
    x, ring = empty(rows, tokens, 8, 64, dtype=dtype), empty(rows, 2, 249 + tokens, 8, 64, dtype=dtype)
    places, name = [empty(rows, dtype=torch.int64)] * 3, f"Mimi, {rows} rows of {tokens}"
    return [
        call(name, windowed.store_window, x, x, ring, *places),
        call(name, windowed.window_attention, x, ring, *places, 250),
    ]


def seanet(rows: int, dtype: torch.dtype) -> list[Call]:
    """Mimi's decoder over a frame, of EnCodec what it has beside: the first and the last convolution up, units, and the end."""
    made = []
    for channels, out, stride, columns in ((1024, 512, 8, 2), (128, 64, 4, 480)):
        x, past = empty(rows, columns, channels, dtype=dtype), empty(rows, 1, channels, dtype=dtype)
        layer = taps.Taps(
            empty(2, channels, stride * out, dtype=dtype), empty(stride * out, dtype=dtype), up=stride
        )
        made.append(call(f"{rows} rows of {channels}, up {stride}", taps.apply_taps, x, layer, past))
    x, past = empty(rows, 1920, 64, dtype=dtype), empty(rows, 2, 64, dtype=dtype)
    last = taps.Taps(empty(3, 64, 1, dtype=dtype), empty(1, dtype=dtype))
    made.append(call(f"{rows} rows, to mono", taps.apply_taps, x, last, past))
    for channels, columns, shortcut in ((64, 1920, False), (128, 480, False), (32, 320, True)):
        x, past, bias = (
            empty(*shape, dtype=dtype)
            for shape in ((rows, columns, channels), (rows, 2, channels), (channels,))
        )
        wide = taps.Taps(empty(3, channels, channels // 2, dtype=dtype), empty(channels // 2, dtype=dtype))
        narrow = taps.Taps(empty(1, channels // 2, channels, dtype=dtype), bias)
        beside = taps.Taps(empty(1, channels, channels, dtype=dtype), bias) if shortcut else None
        unit = elu_unit.EluUnit(wide, narrow, beside)
        made.append(call(f"{rows} rows of {channels}", elu_unit.elu_unit, x, unit, past, True))
    return made


def voice(rows: int, dtype: torch.dtype) -> list[Call]:
    """Flow and vocoder over a chunk of 26 tokens, 179 frames, with a window of 887."""
    made, name = [], f"{rows} rows"
    for channels, groups, frames in ((256, 8, 887), (80, 1, 887)):
        x, norm_of = (
            empty(rows, channels, frames, dtype=dtype),
            [empty(channels, dtype=dtype) for _ in range(2)],
        )
        made.append(
            call(f"{name} of {channels}", groupnorm.group_norm_mish, x, ints(rows).long(), *norm_of, groups)
        )
    x, vector, w = (
        empty(rows, 128, 64 * 179, dtype=dtype),
        empty(128, dtype=dtype),
        empty(128, 128, 11, dtype=dtype),
    )
    past, inner = (empty(rows, 128, 10 * dilation, dtype=dtype) for dilation in (5, 1))
    weights, n = residual.ResidualWeights(vector, w, vector, vector, w, vector, 5), ints(rows).long()
    made.append(call(f"{name} of 128, 11 taps", residual.stream_residual, x, past, inner, n, weights, (n, n)))
    codes, vectors = empty(16384, 1280, dtype=dtype), empty(rows * 25, 1280, dtype=dtype)
    return [*made, call(f"{rows * 25} vectors", vq.nearest_code, vectors, codes)]


def convolutions(rows: int, dtype: torch.dtype) -> list[Call]:
    """The vocoder's between its units, over 179 frames, and the flow's own over frames."""
    made, n = [], ints(rows).long()
    for name, shape, stride, is_transposed, slope, steps in (
        ("first", (512, 80, 7), 1, False, 1.0, 179), ("first of few frames", (512, 80, 7), 1, False, 1.0, 26),
        ("up", (256, 128, 16), 8, True, 0.1, 8 * 179),
        ("down", (256, 18, 16), 8, False, 1.0, 64 * 179), ("last", (18, 128, 7), 1, False, 0.01, 64 * 179),
    ):  # fmt: skip
        weight, bias = empty(*shape, dtype=dtype), empty(shape[1 if is_transposed else 0], dtype=dtype)
        conv = stream_conv.StreamConvWeights(weight, bias, stride, 1, is_transposed, slope)
        channels = shape[0 if is_transposed else 1]
        x, past = empty(rows, channels, steps, dtype=dtype), empty(rows, channels, conv.past, dtype=dtype)
        made.append(call(f"{rows} rows, {name}", stream_conv.stream_conv, x, past, n, conv, (n, n)))
    half = frame_conv.FrameConvWeights(empty(256, 256, 3, dtype=dtype), empty(256, dtype=dtype), 1, 2)
    return [
        *made,
        call(f"{rows} rows of 887", frame_conv.frame_conv, empty(rows, 887, 256, dtype=dtype), n, half),
    ]


def voice_networks(rows: int, dtype: torch.dtype) -> list[Call]:
    """A transformer of the flow over a window of 887 frames, and the encoder's attention over a chunk and 12 blocks before it."""

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return empty(*shape, dtype=dtype), empty(shape[0], dtype=dtype)

    block = flow_block.TransformerWeights(
        pair(256), empty(1536, 256, dtype=dtype), pair(256, 512), pair(256), pair(1024, 256), pair(256, 1024)
    )
    x, q, k = (empty(rows, *shape, dtype=dtype) for shape in ((887, 256), (8, 35, 64), (8, 155, 64)))
    bias, places, seen = (
        empty(8, 64, dtype=dtype),
        empty(8, 189, 64, dtype=dtype),
        empty(rows, 35, 155, dtype=torch.bool),
    )
    return [
        call(f"{rows} rows of 887", flow_block.flow_block, x, ints(rows).long(), block, 8),
        call(f"{rows} rows of 35", relative.relative_attention, q, k, k, bias, bias, places, seen),
    ]


def transforms(rows: int) -> list[Call]:
    """The vocoder's source and samples of a chunk of 26 tokens; the features of 4 s of speech."""
    wave, overlap, window = (
        empty(*shape, dtype=torch.float32) for shape in ((rows, 179 * 256), (rows, 12), (16,))
    )
    spectrum, n, name = empty(rows, 9, 179 * 64, dtype=torch.float32), ints(rows).long(), f"{rows} rows"
    pitch, cycles = (empty(*shape, dtype=torch.float64) for shape in ((rows, 179), (rows,)))
    phases, rough = (empty(*shape, dtype=torch.float32) for shape in ((rows, 9), (rows, 9, 179 * 256)))
    merge = source.SourceSettings(phases[:1], phases[0, :1], 22050, 256, 0.1, 0.003, 10.0)
    speech, filters = empty(rows, 64240, dtype=torch.float32), empty(201, 128, dtype=torch.float32)
    return [
        call(name, source.stream_source, pitch, cycles, n, merge, phases, rough),
        call(f"{name}, source", noise.normal_grid, n, noise.SOURCE_STREAM, ints(rows, 179 * 64).long(), 9),
        call(f"{name}, flow", noise.normal_grid, n, noise.FLOW_STREAM, ints(rows, 896).long(), 20),
        call(name, stft.stream_stft, wave, overlap, n, window, 4, n, n),
        call(name, istft.stream_istft, spectrum, spectrum, overlap, n, window, 4, n, n),
        call(f"{name}, whole", istft.istft, spectrum, spectrum, window, 4),
        call(f"{name} of 4 s", mel.log_frames, speech, filters, 160),
    ]


BF16, PAGE_SIZES = torch.bfloat16, (16, 32, 64, 128)
CALLS: list[Call] = []
for dtype in (BF16, torch.float32):
    CALLS += [
        *residual_vq(dtype),
        *windows(16, 2, dtype),
        *windows(1, 16, dtype),
        *seanet(1, dtype),
        *seanet(16, dtype),
    ]
for rows in ROWS:
    CALLS += elementwise(rows, BF16)
    for page_size in PAGE_SIZES:
        CALLS += heads(rows, page_size, BF16)
CALLS += [attend(8, 512, page_size, BF16, weighted) for page_size in (16, 128) for weighted in (False, True)]
CALLS += [attend(8, 512, 16, dtype, True) for dtype in (torch.float16, torch.float32)]
CALLS += [steps(rows, 16, BF16, weighted) for rows in (1, 32) for weighted in (False, True)]
CALLS += [attend(32, 1, 16, BF16, False), steps(1, 128, BF16, bias=False)]
CALLS += [steps(8, 16, dtype, True) for dtype in (torch.float16, torch.float32)]
CALLS += [call_fp8 for rows, queries in ((8, 512), (8, 1)) for call_fp8 in fp8_cache(rows, queries, BF16)]
for dtype in (BF16, torch.float16, torch.float32):
    for rows in (1, 8, 16):
        CALLS += [*products(rows, dtype), end_of_step(rows, dtype, True)]
    CALLS += dependent(products(1, dtype))
CALLS += dependent(
    [
        *elementwise(1, BF16)[:1],
        *(steps(1, 16, BF16, weighted) for weighted in (False, True)),
    ]
)
CALLS += [end_of_step(rows, BF16, True) for rows in (32, 128, 256)]
for label in ("qkv", "gate and up", "down"):
    CALLS += quantised(1, BF16, label, "int8", "fp8", "int4 32", "int4 128", "symmetric 32")
CALLS += quantised(64, BF16, "prompt's qkv", "int8", "fp8", "int4 32")
CALLS += [
    made
    for dtype in (torch.float16, torch.float32)
    for made in quantised(16, dtype, "qkv", "int8", "int4 64")
]
CALLS += [
    made
    for dtype in (BF16, torch.float32)
    for made in (*voice(2, dtype), *convolutions(2, dtype), *voice_networks(2, dtype))
]
CALLS += transforms(2)
CALLS += [draws(rows) for rows in (1, 32, 128, 256)]
CALLS += [cursors(rows) for rows in (1, 128)]
CALLS += [ends(rows, BF16) for rows in (1, 256)]
CALLS += [call("vocabulary", philox.gumbel_noise, 1, 0, 0, empty(VOCABULARY, dtype=torch.int64))]
