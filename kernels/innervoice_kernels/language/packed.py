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
# A code becomes a byte of its own, low ones and high ones apart. To bfloat16 128 is added; to float16 64, whose step is 1/16.
_INT4_TO_BF16 = tl.constexpr("""{
    .reg .b32 low, high;
    shr.b32 high, $4, 4;
    and.b32 low, $4, 0x0f0f0f0f;
    and.b32 high, high, 0x0f0f0f0f;
    prmt.b32 $0, low, 0x43434343, 0x4140;
    prmt.b32 $1, low, 0x43434343, 0x4342;
    prmt.b32 $2, high, 0x43434343, 0x4140;
    prmt.b32 $3, high, 0x43434343, 0x4342;
}""")
_INT4_TO_FP16 = tl.constexpr("""{
    .reg .b32 low, high;
    shl.b32 low, $4, 4;
    and.b32 low, low, 0xf0f0f0f0;
    and.b32 high, $4, 0xf0f0f0f0;
    prmt.b32 $0, low, 0x54545454, 0x4140;
    prmt.b32 $1, low, 0x54545454, 0x4342;
    prmt.b32 $2, high, 0x54545454, 0x4140;
    prmt.b32 $3, high, 0x54545454, 0x4342;
}""")
# Minus what is added, and minus 8 more.
_BF16_TAKEN = tl.constexpr("{ mov.b32 $0, 0xc300c300; mov.b32 $1, 0xc300c300; }")
_BF16_TAKEN_8 = tl.constexpr("{ mov.b32 $0, 0xc308c308; mov.b32 $1, 0xc308c308; }")
_FP16_TAKEN = tl.constexpr("{ mov.b32 $0, 0xd400d400; mov.b32 $1, 0xd400d400; }")
_FP16_TAKEN_8 = tl.constexpr("{ mov.b32 $0, 0xd480d480; mov.b32 $1, 0xd480d480; }")
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
    """Bytes of two codes each, with `added`, in the type that an address points to, exactly: the low and the high ones."""
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
def taken(codes: Block, like: Ptr, EIGHT: constexpr) -> Block:
    """For each code minus what `halves` adds to it, EIGHT: and minus 8 more, laid out as `halves` are."""
    if _BITS and like.dtype.element_ty == tl.bfloat16:
        text: constexpr = _BF16_TAKEN_8 if EIGHT else _BF16_TAKEN
        return tl.inline_asm_elementwise(text, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    if _BITS and like.dtype.element_ty == tl.float16:
        text16: constexpr = _FP16_TAKEN_8 if EIGHT else _FP16_TAKEN
        return tl.inline_asm_elementwise(text16, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    less: constexpr = 8.0 if EIGHT else 0.0
    return ((codes * 0).to(tl.float32) - added(like) - less).to(like.dtype.element_ty)


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
