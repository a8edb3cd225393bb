// Products with bfloat16 weights for instructions that multiply float32 only: the weights are widened on the way.
// Included inside a kernel file, behind its vectors.
#pragma once

#include "cpu/product_kernels.h"

namespace innervoice {
namespace {

constexpr bool kDotsOfBf16 = false;

inline void product_bf16(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x, std::int64_t M,
                         float* y, std::int64_t ldy) {
  cover(first, last, M, FloatBody<std::uint16_t>{w, first, x, y, ldy});
}

}  // namespace
}  // namespace innervoice
