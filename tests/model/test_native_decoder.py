"""The CPU's native decoder and its products against plain PyTorch, on every set of instructions, by the error rule."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from native_rows import BASE, MODELS, REFLECTION, STEPS, NativeRows, make_model, plain_of, run
from native_weights import KINDS, numbers
from rows import PAGE, Rows
from torch import Tensor

from innervoice.model.kv_cache import KVCache
from innervoice.model.native import NativeDecoder, held, make_native
from innervoice.model.quant import to_fp8, to_int8
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice_kernels import _C
from innervoice_kernels.testing.rule import errors

ISAS = _C.available_isas()
SIZES = (
    (1, 1, 1),
    (3, 17, 5),
    (7, 65, 257),
    (16, 70, 576),
    (2, 33, 96),
    (1, 9, 8300),
    (5, 3, 160),
    (6, 10, 1536),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_products_of_few_rows(isa: str, kind: str) -> None:
    """Float32 weights by the rule in float32, the others in bfloat16, the type whose models they make."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    for rows, outputs, columns in SIZES:
        x = torch.randn(rows, columns, generator=generator)
        if dtype == torch.bfloat16:
            x = x.to(dtype).float()
        weight = KINDS[kind](torch.randn(outputs, columns, generator=generator))
        out = torch.full((rows, outputs), float("nan"))
        _C.product(x, held(weight), out, isa)
        ref64 = x.double() @ numbers(weight, torch.float64).T
        error, bound = errors(out, x.to(dtype) @ numbers(weight, dtype).T, ref64)
        assert error <= bound, (rows, outputs, columns)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("int")])
@pytest.mark.parametrize("isa", ISAS)
def test_exact_products_of_few_rows(isa: str, kind: str) -> None:
    """Inputs of quantised weights as they are: by the rule in float32, and a row beside others as it is alone."""
    generator = torch.Generator().manual_seed(0)
    for rows, outputs, columns in SIZES:
        x = torch.randn(rows, columns, generator=generator)
        weight = KINDS[kind](torch.randn(outputs, columns, generator=generator))
        out, alone = torch.full((rows, outputs), float("nan")), torch.full((1, outputs), float("nan"))
        _C.product(x, held(weight), out, isa, exact=True)
        ref64 = x.double() @ numbers(weight, torch.float64).T
        error, bound = errors(out, x @ numbers(weight, torch.float32).T, ref64)
        assert error <= bound, (rows, outputs, columns)
        _C.product(x[-1:], held(weight), alone, isa, exact=True)
        assert torch.equal(alone[0], out[-1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("int")])
@pytest.mark.parametrize("isa", ISAS)
def test_products_of_many_rows(isa: str, kind: str) -> None:
    """By the rule in bfloat16; a row's sums are those of the row alone, but for their last step on other lanes."""
    generator = torch.Generator().manual_seed(0)
    for rows, outputs, columns in ((17, 5, 1), (18, 33, 31), (23, 17, 576), (19, 9, 8300), (70, 13, 2049)):
        x = torch.randn(rows, columns, generator=generator).bfloat16().float()
        weight = KINDS[kind](torch.randn(outputs, columns, generator=generator))
        out, alone = torch.full((rows, outputs), float("nan")), torch.full((1, outputs), float("nan"))
        _C.product(x, held(weight), out, isa)
        ref64 = x.double() @ numbers(weight, torch.float64).T
        error, bound = errors(out, x.bfloat16() @ numbers(weight, torch.bfloat16).T, ref64)
        assert error <= bound, (rows, outputs, columns)
        _C.product(x[-1:], held(weight), alone, isa)
        torch.testing.assert_close(
            alone[0], out[-1], rtol=0 if isa == "avx512" else 1e-5, atol=0 if isa == "avx512" else 1e-4
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("int")])
@pytest.mark.parametrize("isa", ISAS)
def test_expanded_weights_have_the_bits_of_the_reference(isa: str, kind: str) -> None:
    """Products with the identity, whose sums have one term that is not 0."""
    generator = torch.Generator().manual_seed(0)
    for columns in (1, 5, 31, 33, 96, 257, 576):
        weight = KINDS[kind](torch.randn(37, columns, generator=generator))
        out = torch.full((columns, 37), float("nan"))
        _C.gemm(_C.ThreadTeam(1), torch.eye(columns), held(weight), out, None, isa)
        assert torch.equal(out.T, numbers(weight, torch.float32)), columns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_blocked_product_of_every_kind(isa: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(19, 300, generator=generator),
        KINDS[kind](torch.randn(45, 300, generator=generator)),
    )
    out = torch.full((19, 45), float("nan"))
    _C.gemm(_C.ThreadTeam(2), x, held(weight), out, None, isa)
    error, bound = errors(
        out, x @ numbers(weight, torch.float32).T, x.double() @ numbers(weight, torch.float64).T
    )
    assert error <= bound


@pytest.mark.parametrize("isa", ISAS)
def test_a_number_that_is_none_spoils_its_own_row_alone(isa: str) -> None:
    x, weight = torch.ones(3, 40), to_int8(torch.ones(5, 40))
    x[1, 3] = float("inf")
    out = torch.zeros(3, 5)
    _C.product(x, held(weight), out, isa)
    assert not out[1].isfinite().any()
    torch.testing.assert_close(out[[0, 2]], torch.full((2, 5), 40.0))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_logits_of_a_float32_model(isa: str, name: str) -> None:
    """Ragged steps, long and short contexts, pages in any order, reflection weights."""
    model = make_model(MODELS[name])
    got = run(NativeRows(model, NativeDecoder(model, _C.ThreadTeam(2), isa), 3, 700, REFLECTION))
    torch.testing.assert_close(got, run(Rows(model, 3, 700, REFLECTION)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4-32", "int4-32s", "int4-64", "int4-128s"])
@pytest.mark.parametrize("isa", ISAS)
def test_logits_of_a_bfloat16_model(isa: str, kind: str) -> None:
    model = make_model(replace(BASE, tied=False, hidden_size=160, ffn_size=96), kind, torch.bfloat16)
    native = NativeDecoder(model, _C.ThreadTeam(2), isa)
    steps = STEPS[:3]
    got = run(NativeRows(model, native, 3, 64, REFLECTION), steps)
    ref, ref64 = (
        run(Rows(plain_of(model, dtype), 3, 64, REFLECTION), steps)
        for dtype in (torch.bfloat16, torch.float64)
    )
    error, bound = errors(got, ref, ref64)
    assert error <= bound


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4-32"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_head_computes_what_is_wanted_alone_and_bit_by_bit_the_same(isa: str, kind: str) -> None:
    model = make_model(replace(BASE, tied=False, hidden_size=160, ffn_size=96), kind, torch.bfloat16)
    native = NativeDecoder(model, _C.ThreadTeam(2), isa)
    rows = NativeRows(model, native, 2, 64)
    made: list[Tensor] = []
    logits = native.logits

    def with_outputs(ids: Tensor, batch: AttentionInputs, kv: KVCache, wanted: Tensor) -> Tensor:
        for outputs in (None, [(3, 4), (7, 290), (299, 300)], [], [(0, native.vocab_size)]):
            made.append(logits(ids, batch, kv, wanted, outputs))  # the same keys and values are written again
        return made[0]

    native.logits = with_outputs  # type: ignore[method-assign]
    rows.step([[1, 2, 3, 4, 5], [6]])
    whole, some, none, again = made
    wanted = torch.zeros(whole.shape[1], dtype=torch.bool)
    wanted[[3, 299]] = wanted[7:290] = True
    assert torch.equal(whole, again) and torch.equal(some[:, wanted], whole[:, wanted])
    assert some[:, ~wanted].isnan().all() and none.isnan().all()
    native.logits = lambda *given: logits(*given, [(5, 99999)])  # type: ignore[method-assign, assignment]
    with pytest.raises(
        ValueError, match=r"outputs must be ascending ranges of ids below \d+, not 5 to 99999"
    ):
        rows.step([[1], [2]])


@pytest.mark.parametrize("kind", ["int8", "int4-32"])
@pytest.mark.parametrize("name", ["plain", "experts"])
def test_a_float32_model_keeps_its_inputs(name: str, kind: str) -> None:
    model = make_model(replace(MODELS[name], tied=False), kind)
    got = run(NativeRows(model, NativeDecoder(model, _C.ThreadTeam(2)), 3, 64, REFLECTION), STEPS[:3])
    ref = run(Rows(plain_of(model, torch.float32), 3, 64, REFLECTION), STEPS[:3])
    torch.testing.assert_close(got, ref, rtol=0, atol=1e-4)


def test_threads_do_not_change_a_bit() -> None:
    model = make_model(BASE)
    made = [
        run(NativeRows(model, NativeDecoder(model, _C.ThreadTeam(n)), 3, 700, REFLECTION)) for n in (1, 2, 5)
    ]
    assert all(torch.equal(one, made[0]) for one in made)


def test_what_is_not_covered_runs_plain_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    half = make_model(BASE, dtype=torch.float16)
    kv = KVCache.allocate(BASE, 4, PAGE, torch.float16)
    with caplog.at_level(logging.WARNING, "innervoice"):
        assert make_native(half, kv, "auto") is None
    assert [record.getMessage() for record in caplog.records] == [
        "the decoder runs in plain PyTorch: its type is torch.float16 with pages of torch.float16, "
        "covered are float32 and bfloat16"
    ]
    with pytest.raises(ValueError, match="does not run this model: its type is"):
        make_native(half, kv, "native")
    with pytest.raises(ValueError, match="backend is 'fast': use auto, native, plain"):
        make_native(half, kv, "fast")
    model = make_model(BASE)
    layer = replace(model.weights.layers[0], down=to_fp8(model.weights.layers[0].down))
    fp8 = Transformer(BASE, replace(model.weights, layers=(layer,)))
    with pytest.raises(ValueError, match="down is in fp8"):
        make_native(fp8, KVCache.allocate(BASE, 4, PAGE, torch.float32), "native")


def test_refusals() -> None:
    model = make_model(BASE)
    native = NativeDecoder(model, _C.ThreadTeam(1))
    rows = NativeRows(model, native, 1, 64)
    with pytest.raises(ValueError, match=r"ids\[1\] is 300: the vocabulary has 300"):
        rows.step([[1, 300]])
    rows.table = rows.table + 100
    with pytest.raises(ValueError, match="slots"):
        rows.step([[1]])
    other = make_model(replace(BASE, ffn_size=64))
    layers = (replace(model.weights.layers[0], down=other.weights.layers[0].down),)
    with pytest.raises(ValueError, match=r"gate_up: expected \[128, 48\], got \[200, 48\]"):
        NativeDecoder(Transformer(BASE, replace(model.weights, layers=layers)), _C.ThreadTeam(1))
