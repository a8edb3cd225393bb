"""The reference ops against independent definitions, and the public ops against the references."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.language.activation import silu_mul_ref
from innervoice_kernels.language.attention import paged_attention_ref
from innervoice_kernels.language.kvstore import store_kv_ref
from innervoice_kernels.language.kvstore_fp8 import store_kv_fp8_ref
from innervoice_kernels.language.norm import rms_norm_ref
from innervoice_kernels.language.rope import rotary_ref
from innervoice_kernels.sampling.philox import LOW, MULTIPLIERS, WEYL, gumbel_noise
from innervoice_kernels.sampling.sample import REFUSED, Draw, sample_ref
from innervoice_kernels.speech_codec.istft import istft_ref
from innervoice_kernels.speech_codec.mel import log_mel_ref
from innervoice_kernels.speech_codec.snake import snake_ref
from innervoice_kernels.speech_codec.vq import nearest_code_ref
from innervoice_kernels.testing import CASES, OPS, Case, Op, check, errors
from innervoice_kernels.testing.rule import unwritten_is_nan

ALL = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases]
REAL = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.real]
DTYPED = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{dtype}")
    for op in OPS.values()
    for case in op.cases
    for dtype in op.dtypes
]
ATOL = {
    "log_mel": 1e-4,
    "flow_stage": 2e-5,
    "int4_linear": 5e-6,
    "stream_residual": 1e-5,
    "group_norm_mish": 1e-5,
    "normal_grid": 4e-6,
}  # the logarithm of little power, long sums, angles of a whole turn; 1e-6 for the rest


def every(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES[name]])


def inputs_of(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return case.make_inputs(dtype, "cpu", torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("op", "case", "dtype"), DTYPED)
def test_public_op_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    check(op, case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case"), REAL)
def test_public_op_obeys_the_error_rule_at_real_shapes(op: Op, case: Case) -> None:
    """In the type that the model is shipped in; the small cases run in all of them."""
    check(op, case, torch.bfloat16 if torch.bfloat16 in op.dtypes else op.dtypes[0])


@pytest.mark.parametrize(("op", "case"), ALL)
def test_reference_is_close_in_float32_and_leaks_no_unwritten_memory(op: Op, case: Case) -> None:
    inputs = inputs_of(case, torch.float32)
    wide = {
        name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in inputs.items()
    }
    may_hold_nan = bool(op.mutates) or case.name == "rows without a number"
    with unwritten_is_nan():
        narrow = op.outputs(op.ref, inputs)
    for got, exact in zip(narrow, op.outputs(op.exact or op.ref, wide), strict=True):
        assert may_hold_nan or not got.isnan().any()
        # fp8 has three bits behind the point, and equal steps below 2^-6.
        rtol, atol = (2**-4, 2**-10) if got.dtype == torch.float8_e4m3fn else (1e-5, ATOL.get(op.name, 1e-6))
        torch.testing.assert_close(got.double(), exact.double(), rtol=rtol, atol=atol, equal_nan=True)


def test_check_refuses_a_wrong_op() -> None:
    op, case = OPS["rms_norm"], CASES["rms_norm"][1]
    with pytest.raises(AssertionError, match="rms_norm primes"):
        check(op, case, torch.float32, fast=lambda x, w, eps: rms_norm_ref(x, w, eps + 1e-3))
    with pytest.raises(AssertionError, match=r"float64, expected torch\.float32"):
        check(op, case, torch.float32, fast=lambda x, w, eps: rms_norm_ref(x.double(), w.double(), eps))
    with pytest.raises(AssertionError, match="error inf"):
        check(op, case, torch.float32, fast=lambda x, w, eps: torch.empty_like(x))
    assert not torch.are_deterministic_algorithms_enabled()
    nan = torch.tensor([float("nan")])
    assert errors(nan, torch.ones(1), torch.ones(1))[0] == math.inf


def in_order(x: Tensor, w: Tensor, residual: Tensor) -> Tensor:
    """A product whose terms are added up one after the other in float32."""
    return torch.from_numpy((x * w).numpy().cumsum(-1, dtype=np.float32)[:, -1])[None] + residual


def in_tf32(x: Tensor, w: Tensor, residual: Tensor) -> Tensor:
    """A product of numbers that are rounded to ten bits behind the point."""

    def rounded(part: Tensor) -> Tensor:
        return ((part.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    return (rounded(x).double() @ rounded(w).double().T).float() + residual


def test_float32_sums_in_any_order_obey_the_rule_and_rounded_factors_do_not() -> None:
    """A row as deep as a model's feed-forward: a library adds it up in parts, and has the smaller error of the two."""
    op = OPS["linear"]
    shapes = {"x": (1, 13696), "w": (64, 13696), "residual": (1, 64)}

    def make(dtype: torch.dtype, device: Any, generator: torch.Generator) -> dict[str, Any]:
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {name: value.to(dtype) for name, value in (made | {"w": made["w"] / 117}).items()}

    case = Case("deep", make)
    assert check(op, case, torch.float32, fast=in_order) > 1e-6
    with pytest.raises(AssertionError, match="exceeds"):
        check(op, case, torch.float32, fast=in_tf32)
    assert (
        errors(torch.ones(1) + 1e-6, torch.ones(1), torch.ones(1))[1] < 1e-6
    )  # what is no sum has no more room


def second_code(x: Tensor, codebook: Tensor) -> Tensor:
    """The second nearest code of the first vector, the nearest of the others."""
    ids = torch.cdist(x, codebook).topk(2, largest=False).indices
    return torch.cat([ids[:1, 1], ids[1:, 0]])


def test_check_refuses_a_wrong_code_but_not_a_near_tie() -> None:
    op = OPS["nearest_code"]
    with pytest.raises(AssertionError, match="1 of 7 ids are wrong"):
        check(op, CASES["nearest_code"][1], torch.float32, fast=second_code)
    with pytest.raises(AssertionError, match="3 of 3 ids are wrong"):
        check(op, two_codes(1e-3), torch.float32, fast=lambda x, codebook: 1 - nearest_code_ref(x, codebook))
    check(op, two_codes(1e-9), torch.float32, fast=lambda x, codebook: 1 - nearest_code_ref(x, codebook))
    with pytest.raises(AssertionError, match="3 of 3 ids are wrong"):
        check(op, two_codes(1e-9), torch.float32, fast=lambda x, codebook: torch.full((3,), 2))


def two_codes(apart: float) -> Case:
    """Three vectors and two codes at nearly the same distance of them."""
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    return Case(
        "two codes",
        lambda dtype, device, generator: {"x": torch.tensor([[apart, 1.0]] * 3), "codebook": codebook},
    )


def test_check_refuses_a_wrong_draw_but_not_a_near_tie() -> None:
    op, many = OPS["sample"], next(case for case in CASES["sample"] if case.name == "many rows")
    with pytest.raises(AssertionError, match="ids are wrong"):
        check(
            op,
            many,
            torch.float32,
            fast=lambda logits, draws: sample_ref(logits, [replace(draw, n=9) for draw in draws]),
        )
    with pytest.raises(AssertionError, match="1 of 64 ids are wrong"):
        check(op, many, torch.float32, fast=lambda logits, draws: swap_first(*sample_ref(logits, draws), 5))
    with pytest.raises(AssertionError, match="error"):
        check(
            op,
            many,
            torch.float32,
            fast=lambda logits, draws: (sample_ref(logits, draws)[0], torch.zeros(len(draws))),
        )
    broken = next(case for case in CASES["sample"] if case.name == "rows without a number")
    with pytest.raises(AssertionError, match="1 of 10 ids are wrong"):
        check(op, broken, torch.float32, fast=lambda logits, draws: swap_first(*sample_ref(logits, draws), 3))
    noise = gumbel_noise(0, 0, 0, torch.arange(2))
    tied = torch.stack([noise[1] - noise[0], torch.zeros(())])[None]  # both scores are equal up to rounding
    check_two(tied, Draw(((0, 2),), (), 1.0))
    with pytest.raises(AssertionError, match="1 of 1 ids are wrong"):
        check_two(tied + torch.tensor([0.01, 0.0]), Draw(((0, 2),), (), 1.0))
    with pytest.raises(AssertionError, match="1 of 1 ids are wrong"):
        check_two(torch.tensor([[1.0, 1.0 + 1e-7]]), Draw(((0, 2),)))  # greedy: no near-ties


def swap_first(ids: Tensor, logprobs: Tensor, token: int) -> tuple[Tensor, Tensor]:
    return ids.index_fill(0, torch.tensor([0]), token), logprobs


def check_two(logits: Tensor, draw: Draw) -> None:
    """Check an op that draws the other of two ids."""
    case = Case("two ids", lambda dtype, device, generator: {"logits": logits, "draws": (draw,)})
    check(
        OPS["sample"],
        case,
        torch.float32,
        fast=lambda logits, draws: (1 - sample_ref(logits, draws)[0], torch.zeros(1)),
    )


@every("rms_norm")
def test_rms_norm_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    x, w, eps = inputs["x"], inputs["w"], inputs["eps"]
    expected = torch.zeros_like(x)
    for place in (
        torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])).reshape(-1, x.ndim - 1).tolist()
    ):
        row = x[tuple(place)].tolist()
        root = math.sqrt(math.fsum(value * value for value in row) / len(row) + eps)
        normed = [value / root * weight for value, weight in zip(row, w.tolist(), strict=True)]
        expected[tuple(place)] = torch.tensor(normed, dtype=torch.float64)
    torch.testing.assert_close(rms_norm_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


@every("silu_mul")
def test_silu_mul_is_the_formula(case: Case) -> None:
    x = inputs_of(case)["x"]
    half = x.shape[-1] // 2
    torch.testing.assert_close(silu_mul_ref(x), F.silu(x[..., :half]) * x[..., half:], rtol=1e-12, atol=1e-12)


@every("rotary")
def test_rotary_multiplies_complex_numbers(case: Case) -> None:
    inputs = inputs_of(case)
    x, cos, sin = inputs["x"], inputs["cos"], inputs["sin"]
    num_pairs = cos.shape[-1]
    expected = x.clone()
    for i in range(num_pairs):
        a, b = (2 * i, 2 * i + 1) if inputs["interleaved"] else (i, i + num_pairs)
        turned = (
            torch.complex(x[..., a].contiguous(), x[..., b].contiguous())
            * torch.complex(cos[:, i], sin[:, i])[:, None]
        )
        expected[..., a], expected[..., b] = turned.real, turned.imag
    torch.testing.assert_close(rotary_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


@every("store_kv")
def test_store_kv_writes_its_slots_and_nothing_else(case: Case) -> None:
    inputs = inputs_of(case)
    expected = {name: inputs[name].clone() for name in ("k_pages", "v_pages")}
    for token, slot in enumerate(inputs["slots"].tolist()):
        if slot >= 0:
            for name in ("k", "v"):
                expected[f"{name}_pages"].flatten(0, 1)[slot] = inputs[name][token]
    store_kv_ref(**inputs)
    for name, pages in expected.items():
        torch.testing.assert_close(inputs[name], pages, rtol=0, atol=0, equal_nan=True)


def test_store_kv_writes_pages_that_are_part_of_more() -> None:
    layers = torch.zeros(2, 3, 4, 2, 5)
    k, v = torch.ones(3, 2, 5), torch.full((3, 2, 5), 2.0)
    store_kv_ref(k, v, layers[1], layers[1].clone(), torch.tensor([0, 7, 11]))
    assert layers[0].sum() == 0
    assert layers[1].flatten(0, 1)[:, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def dense_attention(inputs: dict[str, Any]) -> Tensor:
    """Row by row: keys collected one at a time, an explicit mask of every query and key, torch's own dense attention."""
    q, page_size = inputs["q"], inputs["k_pages"].shape[1]
    out = torch.zeros_like(q)
    for row, length in enumerate(inputs["context_len"].tolist()):
        begin, end = inputs["query_start"][row : row + 2].tolist()
        places = [(int(inputs["page_table"][row, i // page_size]), i % page_size) for i in range(length)]
        if begin == end:
            continue
        mask = torch.zeros(end - begin, length, dtype=q.dtype)
        for query in range(begin, end):
            for key, place in enumerate(places):
                if key > length - end + query:
                    mask[query - begin, key] = -math.inf
                elif (
                    inputs.get("query_tag") is not None
                    and 0 != inputs["query_tag"][query] == inputs["key_tag"][place]
                ):
                    mask[query - begin, key] = inputs["log_weight"][query]
        heads = q.shape[1] // inputs["k_pages"].shape[2]
        pages = [_numbers(inputs, name) for name in ("k", "v")]
        k, v = (torch.stack([side[place] for place in places]).repeat_interleave(heads, 1) for side in pages)
        y = F.scaled_dot_product_attention(
            q[begin:end].transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=mask,
            scale=inputs["scale"],
        )
        out[begin:end] = y.transpose(0, 1)
    return out


def _numbers(inputs: dict[str, Any], name: str) -> Tensor:
    """The pages, those of fp8 times their scales."""
    pages, scale = inputs[f"{name}_pages"], inputs.get(f"{name}_scale")
    return pages if scale is None else pages.double() * scale.double()[:, None, :, None]


@every("store_kv_fp8")
def test_fp8_pages_hold_what_was_stored_to_three_bits(case: Case) -> None:
    """Token by token into new pages, as all at once; other pages and their scales are as they were."""
    inputs = inputs_of(case, torch.float32)
    slots, page_size = inputs["slots"], inputs["k_pages"].shape[1]
    first = slots[:1].clamp(min=0) // page_size * page_size
    slots = torch.where(slots >= 0, slots - slots[:1] + first, slots)  # the first token begins its page
    whole, single = ({name: x.clone() for name, x in inputs.items()} for _ in range(2))
    store_kv_fp8_ref(**whole | {"slots": slots})
    for index in range(len(slots)):
        one = {name: single[name][index : index + 1] for name in ("k", "v")}
        store_kv_fp8_ref(**single | one | {"slots": slots[index : index + 1]})
    kept = slots >= 0
    page, offset = slots[kept] // page_size, slots[kept] % page_size
    touched = torch.zeros(len(inputs["k_pages"]), dtype=torch.bool).index_fill_(0, page, True)
    for name in ("k", "v"):
        scale = whole[f"{name}_scale"]
        begun = torch.zeros_like(touched).index_fill_(0, page[offset == 0], True)
        assert torch.equal(scale[begun], single[f"{name}_scale"][begun])
        assert torch.equal(scale[~touched], inputs[f"{name}_scale"][~touched])
        assert torch.equal(
            whole[f"{name}_pages"][~touched].float(), inputs[f"{name}_pages"][~touched].float()
        )
        right, sizes = inputs[name][kept].double(), scale[page].double()[:, :, None]
        for got in (whole, single):
            error = (_numbers(got, name)[page, offset] - right).abs()
            assert bool((error <= torch.maximum(right.abs() / 16, 1.5 * sizes * 2**-10)).all())
        assert bool((right.abs() <= 448 * sizes).all())


@every("paged_attention")
def test_paged_attention_is_dense_attention(case: Case) -> None:
    inputs = inputs_of(case)
    torch.testing.assert_close(paged_attention_ref(**inputs), dense_attention(inputs), rtol=1e-10, atol=1e-12)


def test_weight_changes_tagged_keys_only() -> None:
    case = next(c for c in CASES["paged_attention"] if c.name == "mixed, weighted")
    inputs = inputs_of(case)
    plain = paged_attention_ref(
        **{k: v for k, v in inputs.items() if k not in ("query_tag", "key_tag", "log_weight")}
    )
    weighted = paged_attention_ref(**inputs)
    weightless = paged_attention_ref(**inputs | {"log_weight": torch.zeros(len(inputs["q"]))})
    torch.testing.assert_close(weightless, plain, rtol=0, atol=0)
    untagged = inputs["query_tag"] == 0
    assert torch.equal(weighted[untagged], plain[untagged])
    assert not torch.allclose(weighted[~untagged], plain[~untagged])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    case = next(c for c in CASES["paged_attention"] if c.name == "mixed, weighted")
    inputs = inputs_of(case, torch.float32)
    whole = paged_attention_ref(**inputs)
    for row in range(len(inputs["context_len"])):
        begin, end = inputs["query_start"][row : row + 2].tolist()
        alone = inputs | {name: inputs[name][row : row + 1] for name in ("page_table", "context_len")}
        alone |= {name: inputs[name][begin:end] for name in ("q", "query_tag", "log_weight")}
        alone |= {"query_start": torch.tensor([0, end - begin])}
        assert torch.equal(paged_attention_ref(**alone), whole[begin:end])


def noise_of(draw: Draw, token: int) -> float:
    """The noise by Python's own integers and logarithms."""
    words, key = [token, draw.n, draw.d, 0], [draw.seed & LOW, draw.seed >> 32]
    for _ in range(10):
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [second >> 32 ^ words[1] ^ key[0], second & LOW, first >> 32 ^ words[3] ^ key[1], first & LOW]
        key = [(word + step) & LOW for word, step in zip(key, WEYL, strict=True)]
    return -math.log(-math.log(((words[0] >> 9) + 0.5) / 2**23))


@every("gumbel_noise")
def test_gumbel_noise_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    draw = Draw((), seed=inputs["seed"], n=inputs["n"], d=inputs["d"])
    expected = torch.tensor([noise_of(draw, token) for token in inputs["ids"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(gumbel_noise(**inputs).double(), expected, rtol=1e-6, atol=1e-6)


def drawn(z: list[float], draw: Draw) -> tuple[int, float]:
    """One draw by sorting and adding up in Python."""
    allowed = sorted({i for low, high in draw.ranges for i in range(low, high)} | set(draw.extras))
    values = [z[i] for i in allowed]
    if not allowed or any(map(math.isnan, values)) or math.isinf(max(values)):
        return REFUSED, math.nan
    total = math.log(math.fsum(math.exp(value - max(values)) for value in values)) + max(values)
    if draw.temperature == 0:
        token = max(allowed, key=lambda i: (z[i], -i))
        return token, z[token] - total
    best = sorted(allowed, key=lambda i: (-z[i], i))
    if draw.top_k:
        best = [i for i in best if z[i] >= z[best[min(draw.top_k, len(best)) - 1]]]
    mass = [math.exp((z[i] - max(values)) / draw.temperature) for i in best]
    kept = [
        i
        for place, i in enumerate(best)
        if place == 0 or math.fsum(mass[:place]) < draw.top_p * math.fsum(mass)
    ]
    token = max(kept, key=lambda i: (z[i] / draw.temperature + noise_of(draw, i), -i))
    return token, z[token] - total


@every("sample")
def test_sample_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    ids, logprobs = sample_ref(**inputs)
    expected = [
        drawn(row.tolist(), draw) for row, draw in zip(inputs["logits"], inputs["draws"], strict=True)
    ]
    assert ids.tolist() == [token for token, _ in expected]
    torch.testing.assert_close(
        logprobs, torch.tensor([p for _, p in expected]), rtol=1e-6, atol=1e-6, equal_nan=True
    )


@every("snake")
def test_snake_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    expected = inputs["x"].clone()
    for channel, a in enumerate(inputs["alpha"].tolist()):
        expected[:, channel].apply_(lambda x, a=a: x + math.sin(a * x) ** 2 / (a + 1e-9))
    torch.testing.assert_close(snake_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


def fourier(n_fft: int) -> Tensor:
    """exp(2 pi i k n / n_fft) for one side's bins k and the samples n -> [n_fft/2 + 1, n_fft]."""
    turns = (
        torch.outer(
            torch.arange(n_fft // 2 + 1.0, dtype=torch.float64), torch.arange(n_fft, dtype=torch.float64)
        )
        / n_fft
    )
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


@every("istft")
def test_istft_adds_up_overlapping_frames(case: Case) -> None:
    inputs = inputs_of(case)
    window, hop = inputs["window"], inputs["hop"]
    batch, bins, time = inputs["real"].shape
    n_fft = len(window)
    sides = torch.tensor([1.0, *[2.0] * (bins - 2), 1.0], dtype=torch.float64)[:, None] / n_fft
    total, weight = (
        torch.zeros(batch, n_fft + hop * (time - 1), dtype=torch.float64),
        torch.zeros(n_fft + hop * (time - 1)).double(),
    )
    for t in range(time):
        spectrum = torch.complex(inputs["real"][..., t], inputs["imag"][..., t])
        total[:, t * hop : t * hop + n_fft] += window * (spectrum @ (sides * fourier(n_fft))).real
        weight[t * hop : t * hop + n_fft] += window.square()
    inner = slice(n_fft // 2, n_fft // 2 + hop * (time - 1))
    torch.testing.assert_close(istft_ref(**inputs), total[:, inner] / weight[inner], rtol=1e-10, atol=1e-12)


@every("nearest_code")
def test_nearest_code_has_the_least_distance(case: Case) -> None:
    inputs = inputs_of(case)
    distance = (inputs["x"][..., None, :] - inputs["codebook"]).square().sum(-1)
    assert torch.equal(nearest_code_ref(**inputs), distance.argmin(-1))


@every("log_mel")
def test_log_mel_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    samples, filters, hop = inputs["samples"], inputs["filters"].double(), inputs["hop"]
    n_fft = 2 * (len(filters) - 1)
    half, time = n_fft // 2, samples.shape[-1]
    window = 0.5 - 0.5 * torch.cos(torch.arange(n_fft, dtype=torch.float64) * (2 * math.pi / n_fft))
    places = (torch.arange(0, time, hop)[:, None] + torch.arange(n_fft) - half).abs()  # [T / hop, n_fft]
    places = torch.where(places < time, places, 2 * (time - 1) - places)
    power = ((samples[:, places] * window).to(torch.complex128) @ fourier(n_fft).T).abs().square()
    log = (power @ filters).clamp(min=1e-10).log10().mT
    expected = log.clone()
    for row in expected:
        row.copy_((row.clamp(min=row.max() - 8) + 4) / 4)
    torch.testing.assert_close(log_mel_ref(**inputs), expected, rtol=1e-10, atol=1e-10)
