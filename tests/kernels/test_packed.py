"""Bits of quantised codes made into numbers: the instructions of packed.py, carried out one by one for every code there is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from innervoice_kernels.language import packed
from innervoice_kernels.language.weight_formats import fold, unpacked
from innervoice_kernels.language.weight_formats import packed as packed_codes

CODES = torch.arange(256).to(torch.uint8)


def text(name: str) -> str:
    constant = getattr(packed, name)
    return str(getattr(constant, "value", constant))


def prmt(a: int, b: int, selector: int) -> int:
    both = (a | b << 32).to_bytes(8, "little")
    return int.from_bytes(bytes(both[selector >> 4 * i & 7] for i in range(4)), "little")


def paired(
    dtype: torch.dtype, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[int, int], int]:
    """An operation on both numbers of a register, rounded once."""

    def run(a: int, b: int) -> int:
        left, right = (torch.tensor([x], dtype=torch.uint32).view(dtype).double() for x in (a, b))
        return int(of(left, right).to(dtype).view(torch.int32)[0]) & 0xFFFFFFFF

    return run


OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, n: a << n & 0xFFFFFFFF,
    "shr.b32": lambda a, n: a >> n,
    "prmt.b32": prmt,
    "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table],
    "sub.bf16x2": paired(torch.bfloat16, torch.sub),
    "sub.f16x2": paired(torch.float16, torch.sub),
    "mul.bf16x2": paired(torch.bfloat16, torch.mul),
}


def carried_out(name: str, *inputs: int, results: int) -> list[int]:
    """The results of a constant's instructions; $results and up are the inputs."""
    registers = {f"${results + i}": value for i, value in enumerate(inputs)}
    for statement in re.split(r";", text(name).strip("{} \n")):
        operation, _, operands = statement.strip().partition(" ")
        if not operation or operation == ".reg":
            continue
        into, *of = [operand.strip() for operand in operands.split(",")]
        registers[into] = OPERATIONS[operation](*(registers[x] if x in registers else int(x, 0) for x in of))
    return [registers[f"${i}"] for i in range(results)]


def numbers(words: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(words, dtype=torch.uint32).view(dtype).double()


def word(codes: torch.Tensor) -> int:
    return int.from_bytes(bytes(codes.view(torch.uint8).tolist()), "little")


@pytest.mark.parametrize(
    ("name", "codes", "dtype"),
    [
        ("_INT8_TO_BF16", torch.int8, torch.bfloat16),
        ("_INT8_TO_FP16", torch.int8, torch.float16),
        ("_FP8_TO_BF16", torch.float8_e4m3fn, torch.bfloat16),
    ],
)
def test_every_code_becomes_its_number(name: str, codes: torch.dtype, dtype: torch.dtype) -> None:
    for offset in range(4):  # at every place of a register
        four = CODES.roll(offset).view(-1, 4)
        made = torch.stack([numbers(carried_out(name, word(row), results=2), dtype) for row in four])
        wanted = four.view(codes).double()
        is_number = ~wanted.isnan()
        assert torch.equal(made[is_number], wanted[is_number])


@pytest.mark.parametrize(
    ("name", "dtype", "added"), [("BF16", torch.bfloat16, 128), ("FP16", torch.float16, 64)]
)
def test_every_half_of_a_byte_becomes_its_number(name: str, dtype: torch.dtype, added: int) -> None:
    """Low ones and high ones, in the order of the bytes; what is added to them is taken off again."""
    for offset in range(4):
        for four in CODES.roll(offset).view(-1, 4):
            made = numbers(carried_out(f"_INT4_TO_{name}", word(four), results=4), dtype)
            assert torch.equal(made, torch.cat([four & 15, four >> 4]).double() + added)
    for label, less in (("TAKEN", 0), ("TAKEN_8", 8)):
        taken = numbers(carried_out(f"_{name}_{label}", results=2), dtype)
        assert taken.tolist() == [-added - less] * 4


@pytest.mark.parametrize("inputs", [1, 31, 32, 64, 97, 192])
def test_of_64_inputs_the_first_32_are_the_low_halves_of_bytes(inputs: int) -> None:
    made = torch.randint(0, 16, (3, inputs), generator=torch.Generator().manual_seed(inputs))
    folded = fold(packed_codes(made), inputs)
    assert folded.shape == (3, -(-inputs // 64) * 32)
    for k in range(inputs):
        byte = folded[:, k // 64 * 32 + k % 32]
        assert torch.equal(byte >> 4 if k % 64 >= 32 else byte & 15, made[:, k].byte())
    assert torch.equal(unpacked(folded, inputs, folded=True), made.byte())
