#include "innervoice/gemm.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kLine = 16;         // floats of a cache line
constexpr std::int64_t kPanelDepth = 256;  // columns of x and w at a time: a panel stays in the first cache
constexpr std::int64_t kItemColumns = 64;  // outputs that a thread takes at a time

}  // namespace

float* Scratch::floats(std::int64_t count) {
  const auto needed = static_cast<std::size_t>(count + kLine);
  if (memory_.size() < needed) memory_.resize(needed);
  auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
  address = (address + kLine * sizeof(float) - 1) / (kLine * sizeof(float)) * (kLine * sizeof(float));
  return reinterpret_cast<float*>(address);
}

const Kernels& kernels_of(Isa isa) {
  if (!is_available(isa))
    throw std::invalid_argument(std::string("isa ") + name_of(isa) + " is not available here");
  switch (isa) {
#if defined(INNERVOICE_AVX2)
    case Isa::kAvxVnni:
    case Isa::kAvx2: return avx2_kernels();
#endif
#if defined(INNERVOICE_AVX512)
    case Isa::kAvx512: return avx512_kernels();
#endif
    default: return plain_kernels();
  }
}

void gemm_columns(Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w,
                  std::int64_t first, std::int64_t last, float* y, std::int64_t ldy, Scratch& scratch) {
  const Kernels& kernels = kernels_of(isa);
  const std::int64_t width = kernels.panel_columns, panels = (last - first + width - 1) / width;
  float* rows = scratch.floats(width * kPanelDepth * (1 + panels));
  float* packed = rows + width * kPanelDepth;
  for (std::int64_t begin = 0; begin < w.columns || begin == 0; begin += kPanelDepth) {
    const std::int64_t depth = std::min(kPanelDepth, w.columns - begin);
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t n = first + p * width;
      kernels.pack(w, n, std::min(width, last - n), begin, depth, rows, packed + p * width * kPanelDepth);
    }
    for (std::int64_t m = 0; m < M; m += kernels.tile_rows) {
      const std::int64_t count = std::min(kernels.tile_rows, M - m);
      for (std::int64_t p = 0; p < panels; ++p) {
        kernels.tile(x + m * ldx + begin, ldx, count, packed + p * width * kPanelDepth, depth,
                     y + m * ldy + p * width, ldy, std::min(width, last - first - p * width), begin > 0);
      }
    }
  }
}

void gemm(ThreadTeam& team, Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w,
          const float* bias, float* y, std::int64_t ldy) {
  std::vector<Scratch> scratch(static_cast<std::size_t>(team.num_threads()));
  const Kernels& kernels = kernels_of(isa);
  const std::int64_t width = kernels.panel_columns;
  const std::int64_t grain = (kItemColumns + width - 1) / width * width;
  team.run([&](Member& me) {
    me.for_each(w.rows, grain, [&](std::int64_t first, std::int64_t last) {
      gemm_columns(isa, x, ldx, M, w, first, last, y + first, ldy,
                   scratch[static_cast<std::size_t>(me.index())]);
      if (bias == nullptr) return;
      for (std::int64_t m = 0; m < M; ++m) {
        for (std::int64_t n = first; n < last; ++n) y[m * ldy + n] += bias[n];
      }
    });
  });
}

void product(Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w, float* y,
             std::int64_t ldy, bool is_exact) {
  const Kernels& kernels = kernels_of(isa);
  if (w.is_laned) {
    const LaneKernels& lanes = lane_kernels_of(isa);
    Scratch scratch;
    const LaneInputs inputs = lanes.ready(w, x, ldx, M, scratch.floats(lane_floats(w, M)), 0, M);
    return lanes.product(w, 0, w.rows, inputs, M, y, ldy);
  }
  if (is_exact && (w.kind == WeightKind::kInt8 || w.kind == WeightKind::kInt4)) {
    Inputs as_given;
    as_given.x = x;
    as_given.ldx = ldx;
    kernels.product(w, 0, w.rows, as_given, M, y, ldy);
    return;
  }
  Scratch scratch;
  const Inputs inputs = kernels.ready(w, x, ldx, M, scratch.floats(kernels.ready_floats(w, M)), 0, M);
  if (M <= kFewRows || inputs.codes == nullptr || kernels.panel_floats(w) == 0) {
    kernels.product(w, 0, w.rows, inputs, M, y, ldy);
    return;
  }
  Scratch panel;
  kernels.product_of_many(w, 0, w.rows, inputs, M, y, ldy, panel.floats(kernels.panel_floats(w)));
}

}  // namespace innervoice
