// The products of a decoder's step: rows of inputs made ready once, then multiplied piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "innervoice/decoder.h"
#include "innervoice/gemm.h"

namespace innervoice {

// Inputs of a product, ready for all its outputs.
struct ProductSource {
  const Weight* w;
  const float* x;
  std::int64_t ldx;
  std::int64_t count;
  Inputs inputs;
  bool is_few;
  bool is_ready;  // many rows as codes
};

class DecoderProducts {
 public:
  // is_exact: inputs of quantised weights are multiplied as they are.
  DecoderProducts(Isa isa, bool is_exact)
      : isa_(isa), is_exact_(is_exact), kernels_(kernels_of(isa)), lanes_(lane_kernels_of(isa)) {}

  // Memory for `count` rows of a layer's inputs and `wanted` of the output layer's.
  void reserve(const DecoderModel& model, std::int64_t count, std::int64_t wanted) {
    if (std::max(count, wanted) <= kFewRows) return;
    std::int64_t most = ready_floats(model.output, wanted);
    for (const DecoderLayer& layer : model.layers) {
      for (const Weight* w : {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down})
        most = std::max(most, ready_floats(*w, count));
    }
    ready_ = memory_.floats(most);
  }

  // Of few rows every thread makes its own in `own`, which saves a meeting; many are made ready by all
  // threads.
  ProductSource source(Member& me, Scratch& own, const Weight& w, const float* x, std::int64_t ldx,
                       std::int64_t count) const {
    if (count <= kFewRows) return own_source(own, w, x, ldx, count);
    ProductSource y = as_given(w, x, ldx, count);
    if (!y.is_ready) return y;
    me.for_each(count, kFewRows,
                [&](std::int64_t first, std::int64_t last) { ready(w, x, ldx, count, ready_, first, last); });
    y.inputs = ready(w, x, ldx, count, ready_, 0, 0);
    return y;
  }

  // The same by the calling thread alone, for products that it makes alone.
  ProductSource own_source(Scratch& own, const Weight& w, const float* x, std::int64_t ldx,
                           std::int64_t count) const {
    ProductSource y = as_given(w, x, ldx, count);
    if (y.is_ready || (y.is_few && (is_rounded(w) || w.kind == WeightKind::kBfloat16)))
      y.inputs = ready(w, x, ldx, count, own.floats(ready_floats(w, count)), 0, count);
    return y;
  }

  // y[m, n - first] for n in [first, last).
  void multiply(Scratch& memory, const ProductSource& from, std::int64_t first, std::int64_t last, float* y,
                std::int64_t ldy) const {
    if (from.w->is_laned) {
      lanes_.product(*from.w, first, last, from.inputs.lanes, from.count, y, ldy);
    } else if (from.is_few) {
      kernels_.product(*from.w, first, last, from.inputs, from.count, y, ldy);
    } else if (from.is_ready) {
      kernels_.product_of_many(*from.w, first, last, from.inputs, from.count, y, ldy,
                               memory.floats(kernels_.panel_floats(*from.w)));
    } else {
      gemm_columns(isa_, from.x, from.ldx, from.count, *from.w, first, last, y, ldy, memory);
    }
  }

 private:
  std::int64_t ready_floats(const Weight& w, std::int64_t count) const {
    return w.is_laned ? lane_floats(w, count) : kernels_.ready_floats(w, count);
  }

  Inputs ready(const Weight& w, const float* x, std::int64_t ldx, std::int64_t count, float* memory,
               std::int64_t first, std::int64_t last) const {
    if (!w.is_laned) return kernels_.ready(w, x, ldx, count, memory, first, last);
    Inputs y;
    y.lanes = lanes_.ready(w, x, ldx, count, memory, first, last);
    return y;
  }

  bool is_rounded(const Weight& w) const {
    return w.is_laned || (!is_exact_ && (w.kind == WeightKind::kInt8 || w.kind == WeightKind::kInt4));
  }

  ProductSource as_given(const Weight& w, const float* x, std::int64_t ldx, std::int64_t count) const {
    const bool is_few = count <= kFewRows;
    const bool has_codes = w.is_laned || (is_rounded(w) && kernels_.panel_floats(w) > 0);
    ProductSource y = {&w, x, ldx, count, {}, is_few, !is_few && has_codes};
    y.inputs.x = x;
    y.inputs.ldx = ldx;
    return y;
  }

  const Isa isa_;
  const bool is_exact_;
  const Kernels& kernels_;
  const LaneKernels& lanes_;
  Scratch memory_;
  float* ready_ = nullptr;
};

}  // namespace innervoice
