"""The native code of the codecs: all instructions by the error rule, threads, rows and cuts, bad arguments, the choice."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import use
from innervoice_kernels.residual_vq import elu_unit, rvq, taps, window_layer
from innervoice_kernels.speech_codec import snake, vq
from innervoice_kernels.testing import OPS, check
from innervoice_kernels.testing.residual_vq import _apply, run_layer, run_unit

ISAS = _C.available_isas()
TEAM = _C.ThreadTeam(2)


def apply_by(isa: str, x: Tensor, layer: taps.Taps, before: Tensor | None) -> Tensor:
    past = x[:, :0] if before is None else before
    y = torch.empty(len(x), max(0, past.shape[1] + x.shape[1] - layer.past), layer.weight.shape[2])
    layer.packed(isa)(TEAM, past, x, y)
    return y.view(len(x), y.shape[1] * layer.up, y.shape[2] // layer.up)


def unit_by(isa: str, x: Tensor, unit: elu_unit.EluUnit, before: Tensor | None, elu: bool) -> Tensor:
    past = x[:, :0] if before is None else before
    y = torch.empty(len(x), past.shape[1] + x.shape[1] - unit.wide.past, x.shape[2])
    unit.packed(isa)(TEAM, past, x, elu, y)
    return y


def layer_by(
    isa: str, x: Tensor, layer: window_layer.WindowLayer, ring: Tensor, rows: window_layer.RingRows
) -> Tensor:
    if not layer.has_native:
        return window_layer.window_layer_ref(x, layer, ring, rows)
    y = torch.empty_like(x)
    layer.packed(isa)(TEAM, x, rows.cos, rows.sin, ring, rows.slots, rows.start, rows.n, y)
    return y


RUNS = {
    "apply_taps": (_apply, apply_by),
    "elu_unit": (run_unit, unit_by),
    "window_layer": (run_layer, layer_by),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", RUNS)
def test_every_case_follows_the_error_rule_for_all_instructions(isa: str, name: str) -> None:
    run, by = RUNS[name]
    for case in OPS[name].cases:
        check(OPS[name], case, torch.float32, fast=partial(run, partial(by, isa)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 300])
def test_snake_is_its_definition_for_all_instructions(isa: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = (8 * torch.randn(2, rows, 48, generator=generator)).mT
    alpha = 3 * torch.rand(48, generator=generator)
    alpha[0] = 0
    y, expected = snake._snake_native(x, alpha, isa), snake.snake_ref(x.double(), alpha.double())
    if isa == ISAS[-1]:
        assert torch.equal(y, snake.snake(x, alpha))
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=2e-6)
    with use("ref"):
        assert torch.equal(snake.snake(x, alpha), snake.snake_ref(x, alpha))


def given(op: str, case: str) -> dict[str, Any]:
    found = next(one for one in OPS[op].cases if one.name == case)
    return found.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["apply_taps", "elu_unit"])
def test_bits_depend_on_neither_threads_nor_rows_nor_cuts(name: str) -> None:
    function = {"apply_taps": taps.apply_taps, "elu_unit": elu_unit.elu_unit}[name]
    run, inputs = RUNS[name][0], given(name, "pieces")
    whole = run(function, **inputs)
    for threads in (1, 3):
        with_threads(
            threads, lambda: torch.testing.assert_close(run(function, **inputs), whole, rtol=0, atol=0)
        )
    past, steps = inputs["before"].shape[1], inputs["x"].shape[1]
    window = torch.cat([inputs["before"], inputs["x"]], 1)
    for row, cut in ((0, 1), (1, 97), (1, steps - 1)):
        own = window[row : row + 1]
        first = run(function, **inputs | {"before": own[:, :past], "x": own[:, past : past + cut]})
        second = run(function, **inputs | {"before": own[:, cut : cut + past], "x": own[:, past + cut :]})
        assert torch.equal(torch.cat([first, second], 1)[0], whole[row]), (row, cut)


def with_threads(threads: int, body: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        body()
    finally:
        torch.set_num_threads(before)


def test_a_layer_gives_the_same_bits_token_by_token() -> None:
    """The ring wraps on the way, and a slot that brings nothing keeps its bits."""
    inputs = given("window_layer", "long")
    pieces, ring = [], inputs["ring"]
    for token in range(131):
        one = {key: inputs[key][token : token + 1] for key in ("cos", "sin")}
        start = inputs["start"] + token
        one |= {"ring": ring, "x": inputs["x"][:, token : token + 1], "start": start, "n": torch.tensor([1])}
        y, ring = run_layer(window_layer.window_layer, **inputs | one)
        pieces.append(y)
    whole, after = run_layer(window_layer.window_layer, **inputs)
    assert (
        torch.equal(torch.cat(pieces, 1), whole)
        and torch.equal(ring, after)
        and torch.equal(ring[0], inputs["ring"][0])
    )


def test_the_choice() -> None:
    """Native code in float32 on a CPU; elsewhere, and where sizes do not fit, torch's."""
    inputs = given("elu_unit", "primes")
    native = run_unit(elu_unit.elu_unit, **inputs)
    with use("ref"):
        reference = run_unit(elu_unit.elu_unit, **inputs)
    torch.testing.assert_close(native, reference)
    assert not torch.equal(native, reference)
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in inputs.items()}
    assert run_unit(elu_unit.elu_unit, **wide).dtype == torch.float64
    odd = given("window_layer", "odd")  # heads of 8
    both = [run_layer(run, **odd)[0] for run in (window_layer.window_layer, window_layer.window_layer_ref)]
    assert torch.equal(both[0].nan_to_num(), both[1].nan_to_num())


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    conv = taps.Taps(torch.zeros(3, 8, 16), None).packed()
    x = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match=r"out: expected float32 \[B, P \+ T - reach, N\]"):
        conv(TEAM, x[:, :0], x, torch.empty(2, 4, 16))
    with pytest.raises(ValueError, match="x: expected"):
        conv(TEAM, x[:, :0], torch.zeros(2, 5, 9), torch.empty(2, 3, 16))
    with pytest.raises(ValueError, match="dilation above 0"):
        _C.TapsConv(torch.zeros(16, 3, 8), None, 0)
    with pytest.raises(ValueError, match=r"a unit has weights \[H, k, C\]"):
        _C.EluUnit((torch.zeros(4, 3, 8), None), (torch.zeros(8, 1, 5), None))
    with pytest.raises(ValueError, match="a layer has 10 tensors"):
        _C.WindowLayer([x], [], 1, 1, 4, 1e-5)
    inputs = given("window_layer", "wrap")
    with pytest.raises(ValueError, match="ring: expected R of at least window - 1"):
        run_layer(window_layer.window_layer, **inputs | {"ring": inputs["ring"][:, :, :6].contiguous()})
    with pytest.raises(ValueError, match="slots: expected 0 to S - 1"):
        run_layer(window_layer.window_layer, **inputs | {"slots": torch.tensor([1, 2, 4])})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_nearest_code_for_all_instructions(isa: str, dtype: torch.dtype) -> None:
    for case in OPS["nearest_code"].cases:
        check(OPS["nearest_code"], case, dtype, fast=partial(vq.nearest_code_native, isa=isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_codes_for_all_instructions(isa: str, dtype: torch.dtype) -> None:
    def run(
        ids: Tensor, codes: Tensor, sizes: tuple[int, ...], project: Any = None, bias: Any = None
    ) -> Tensor:
        return rvq.rvq_decode_native(ids, rvq.Codebooks(codes, sizes, project, bias), isa)

    for case in OPS["rvq_decode"].cases:
        check(OPS["rvq_decode"], case, dtype, fast=run)


def test_codes_that_are_not_there_are_refused() -> None:
    codebooks = rvq.Codebooks(torch.zeros(2, 5, 4), (2,))
    with pytest.raises(ValueError, match="ids: 5 is not a code, expected 0 to 4"):
        rvq.rvq_decode(torch.tensor([[[0, 1], [5, 0]]]), codebooks)
    with pytest.raises(
        ValueError, match="sizes: expected groups of codebooks that are as many together as ids has, 2"
    ):
        rvq.rvq_decode(torch.zeros(1, 2, 3, dtype=torch.int64), codebooks._replace(sizes=(1, 2)))


def test_of_equal_codes_the_first_is_nearest_and_a_vector_without_a_number_gets_code_0() -> None:
    numbers = torch.randperm(
        700, generator=torch.Generator().manual_seed(0)
    )  # whole, so that equal sums are equal
    codes = (numbers[:, None] // torch.tensor([1, 3, 9, 27]) % 3 + numbers[:, None] / 4).repeat(3, 1)
    x = torch.cat([codes[:700].flip(0), torch.full((1, 4), torch.nan)])
    for name in ("native", "ref"):
        with use(name):
            assert torch.equal(vq.nearest_code(x, codes), torch.tensor([*range(699, -1, -1), 0])), name


def test_the_nearest_code_depends_on_neither_threads_nor_neighbours() -> None:
    inputs = given("nearest_code", "crowded")
    with use("native"):
        whole = vq.nearest_code(**inputs)
        for threads in (1, 3):
            with_threads(
                threads, lambda: torch.testing.assert_close(vq.nearest_code(**inputs), whole, rtol=0, atol=0)
            )
        for row in range(0, len(whole), 7):
            assert vq.nearest_code(inputs["x"][row], inputs["codebook"]) == whole[row]
    with pytest.raises(ValueError, match="a codebook has one code or more"):
        vq.nearest_code(torch.zeros(2, 4), torch.zeros(0, 4))
