"""Two numbers of 16 bits an instruction: codes of quantised weights become bfloat16 or float16 by their bits, products of both.

From 128 to 255 the step of bfloat16 is 1, and so it is for float16 from 1024 to 2047: a code that takes the last bits of
such a number has added itself to it. A register holds four bytes of codes, or two numbers.
"""

from __future__ import annotations

from innervoice_kernels.jit import INTERPRETED, Block, Ptr, constexpr, jit, narrow, tl

# 0x43 above a byte: 128 and its low seven bits are added, or 256 where its sign is set, which is taken off again.
_INT8_TO_BF16 = tl.constexpr("""{
    .reg .b32 a, b, c, d;
    prmt.b32 a, $2, 0x43434343, 0x4140;
    prmt.b32 b, $2, 0x43434343, 0x4342;
    and.b32 c, a, 0x43804380;
    and.b32 d, b, 0x43804380;
    and.b32 a, a, 0x437f437f;
    and.b32 b, b, 0x437f437f;
    sub.bf16x2 $0, a, c;
    sub.bf16x2 $1, b, d;
}""")
# A code with its sign turned over is 128 more than it was, and behind 0x64 1024 more than that.
_INT8_TO_FP16 = tl.constexpr("""{
    .reg .b32 a, b, c;
    mov.b32 c, 0x64806480;
    xor.b32 b, $2, 0x80808080;
    prmt.b32 a, b, 0x64646464, 0x4140;
    prmt.b32 b, b, 0x64646464, 0x4342;
    sub.f16x2 $0, a, c;
    sub.f16x2 $1, b, c;
}""")
# The four bits of an e4m3's exponent are the low ones of a bfloat16's, whose bias is larger by 120. Low bytes are the last of
# the exponent and the fraction, high ones the sign and the first three of the exponent.
_FP8_TO_BF16 = tl.constexpr("""{
    .reg .b32 high, low, power;
    mov.b32 power, 0x7b807b80;
    shl.b32 low, $2, 4;
    shr.b32 high, $2, 4;
    and.b32 low, low, 0xf0f0f0f0;
    and.b32 high, high, 0x07070707;
    lop3.b32 high, $2, 0x80808080, high, 0xea;
    prmt.b32 $1, low, high, 0x7362;
    prmt.b32 low, low, high, 0x5140;
    mul.bf16x2 $1, $1, power;
    mul.bf16x2 $0, low, power;
}""")
# Four bytes are the numbers 0 to 7 of K: 0, 4, 1 and 5 are the first result, 2, 6, 3 and 7 the second, because those pairs
# have 16 bits between them. To bfloat16 128 is added, to float16 64, whose step is 1/16.
_INT4_TO_BF16 = tl.constexpr("""{
    .reg .b32 a, b, c;
    shr.b32 a, $4, 4;
    shr.b32 b, $4, 8;
    shr.b32 c, $4, 12;
    lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $1, a, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $2, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $3, c, 0x000f000f, 0x43004300, 0xea;
}""")
_INT4_TO_FP16 = tl.constexpr("""{
    .reg .b32 a, b, c;
    shl.b32 a, $4, 4;
    shr.b32 b, $4, 4;
    shr.b32 c, $4, 8;
    lop3.b32 $0, a, 0x00f000f0, 0x54005400, 0xea;
    lop3.b32 $1, $4, 0x00f000f0, 0x54005400, 0xea;
    lop3.b32 $2, b, 0x00f000f0, 0x54005400, 0xea;
    lop3.b32 $3, c, 0x00f000f0, 0x54005400, 0xea;
}""")
# Of numbers 0 to 3 and 4 to 7 the first of both pairs, and the second.
_FIRST_PAIRS = tl.constexpr("{ prmt.b32 $0, $2, $4, 0x5410; prmt.b32 $1, $2, $4, 0x7632; }")
_SECOND_PAIRS = tl.constexpr("{ prmt.b32 $0, $3, $5, 0x5410; prmt.b32 $1, $3, $5, 0x7632; }")
_BF16_ONES = tl.constexpr("{ mov.b32 $0, 0x3f803f80; mov.b32 $1, 0x3f803f80; }")
_FP16_ONES = tl.constexpr("{ mov.b32 $0, 0x3c003c00; mov.b32 $1, 0x3c003c00; }")
_MASKED = tl.constexpr("and.b32 $0, $1, $2;")
_BF16_PRODUCT = tl.constexpr("mul.bf16x2 $0, $1, $2;")
_FP16_PRODUCT = tl.constexpr("mul.f16x2 $0, $1, $2;")
_BITS = tl.constexpr(not INTERPRETED)


@jit
def whole(codes: Block, like: Ptr) -> Block:
    """Codes of int8 or e4m3 in the type that an address points to, which holds them exactly."""
    if _BITS and like.dtype.element_ty == tl.bfloat16:
        if codes.dtype == tl.int8:
            return tl.inline_asm_elementwise(
                _INT8_TO_BF16, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
            )
        return tl.inline_asm_elementwise(
            _FP8_TO_BF16, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    if _BITS and like.dtype.element_ty == tl.float16 and codes.dtype == tl.int8:
        return tl.inline_asm_elementwise(
            _INT8_TO_FP16, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4
        )
    if codes.dtype == tl.int8:
        codes = codes.to(tl.float32)
    return codes.to(like.dtype.element_ty)


@jit
def added(like: Ptr) -> constexpr:
    """The offset that `halves` adds to a code for numbers of the type that an address points to."""
    if like.dtype.element_ty == tl.bfloat16:
        return 128.0
    if like.dtype.element_ty == tl.float16:
        return 64.0
    return 0.0


@jit
def halves(codes: Block, like: Ptr) -> Block:
    """Bytes of two codes each, with `added`, in the type that an address points to, exactly: the low and the high ones, or,
    packed, as `paired` has the numbers that they multiply.
    """
    if _BITS and like.dtype.element_ty == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _INT4_TO_BF16,
            "=&r,=&r,=&r,=&r,r",
            [codes],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    if _BITS and like.dtype.element_ty == tl.float16:
        return tl.inline_asm_elementwise(
            _INT4_TO_FP16, "=&r,=&r,=&r,=&r,r", [codes], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    low, high = (codes & 15).to(tl.float32) + added(like), (codes >> 4).to(tl.float32) + added(like)
    return low.to(like.dtype.element_ty), high.to(like.dtype.element_ty)


@jit
def ones(codes: Block, like: Ptr) -> Block:
    """As many ones as there are codes, laid out as `halves` are."""
    if _BITS and like.dtype.element_ty == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _BF16_ONES, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    if _BITS and like.dtype.element_ty == tl.float16:
        return tl.inline_asm_elementwise(
            _FP16_ONES, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4
        )
    return (codes * 0 + 1).to(tl.float32).to(like.dtype.element_ty)


@jit
def places(byte: Block, like: Ptr) -> tuple[Block, Block]:
    """The two places in K whose numbers meet a byte, before `paired`."""
    if _BITS and like.dtype.element_ty != tl.float32:
        first = byte // 4 * 8 + byte % 4
        return first, first + 4
    return 2 * byte, 2 * byte + 1


@jit
def paired(a: Block, b: Block, like: Ptr) -> tuple[Block, Block]:
    """Numbers of `places`, in the order of `halves`."""
    if _BITS and like.dtype.element_ty != tl.float32:
        return (
            tl.inline_asm_elementwise(
                _FIRST_PAIRS, "=&r,=&r,r,r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=4
            ),
            tl.inline_asm_elementwise(
                _SECOND_PAIRS, "=&r,=&r,r,r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=4
            ),
        )
    return a, b


@jit
def masked(a: Block, keep: Block, like: Ptr) -> Block:
    """Numbers where keep is -1, zeros where it is 0; keep int16."""
    if _BITS and like.dtype.element_ty != tl.float32:
        return tl.inline_asm_elementwise(_MASKED, "=r,r,r", [a, keep], dtype=a.dtype, is_pure=True, pack=2)
    return tl.where(keep != 0, a, 0.0)


@jit
def product(a: Block, b: Block, like: Ptr) -> Block:
    """Two tiles of the type that an address points to, multiplied and rounded once."""
    if _BITS and like.dtype.element_ty == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _BF16_PRODUCT, "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    if _BITS and like.dtype.element_ty == tl.float16:
        return tl.inline_asm_elementwise(
            _FP16_PRODUCT, "=r,r,r", [a, b], dtype=tl.float16, is_pure=True, pack=2
        )
    return narrow(a.to(tl.float32) * b.to(tl.float32), like)
