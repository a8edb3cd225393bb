// The table of a kernel file, included at its end.
#pragma once

#include "cpu/attention_kernels.h"
#include "cpu/code_panels.h"
#include "cpu/exact_products.h"
#include "cpu/fuse_kernels.h"
#include "cpu/gemm_kernels.h"
#include "cpu/layer_kernels.h"
#include "cpu/product_kernels.h"
#include "cpu/ready_kernels.h"

namespace innervoice {
namespace {

inline void product(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x, std::int64_t M,
                    float* y, std::int64_t ldy) {
  const bool is_quantised = w.kind == WeightKind::kInt8 || w.kind == WeightKind::kInt4;
  if (is_quantised && x.codes == nullptr) {
    product_exact(w, first, last, x, M, y, ldy);
    return;
  }
  switch (w.kind) {
    case WeightKind::kFloat32: cover(first, last, M, FloatBody{w, first, x, y, ldy}); return;
    case WeightKind::kBfloat16: product_bf16(w, first, last, x, M, y, ldy); return;
    case WeightKind::kInt8: cover(first, last, M, Int8Body{w, first, x, y, ldy}); return;
    case WeightKind::kInt4:
      if (w.group == 32) product_int4<32>(w, first, last, x, M, y, ldy);
      if (w.group == 64) product_int4<64>(w, first, last, x, M, y, ldy);
      if (w.group == 128) product_int4<128>(w, first, last, x, M, y, ldy);
      return;
  }
}

constexpr Kernels kTable = {
    kTileRows,     kPanelColumns, pack,         square_sums,     tile,     expand,   ready_floats,
    ready,         product,       panel_floats, product_of_many, rms_norm, silu_mul, attend,
    attend_floats, exp_total,     fuse_rows,
};

}  // namespace
}  // namespace innervoice
