// What a kernel file offers for its instructions. Every function runs on the calling thread alone.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"
#include "innervoice/weight.h"

namespace innervoice {

struct Kernels {
  // A tile of the blocked product: tile_rows rows of x, panel_columns columns of w.
  std::int64_t tile_rows;
  std::int64_t panel_columns;

  // panel[k * panel_columns + n] = w[first + n, begin + k] for k in [0, depth), n in [0, count); 0 for n past count.
  // rows: room for panel_columns * (depth rounded up to 16) floats.
  void (*pack)(const Weight& w, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t depth,
               float* rows, float* panel);

  // c[m, n] (+)= sum_k a[m, k] panel[k, n] for m in [0, rows), n in [0, columns); rows <= tile_rows.
  void (*tile)(const float* a, std::int64_t lda, std::int64_t rows, const float* panel, std::int64_t depth, float* c,
               std::int64_t ldc, std::int64_t columns, bool accumulate);

  // y[k] = w[n, begin + k] for k in [0, depth).
  void (*expand)(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y);
};

// Throws std::invalid_argument when isa is not available here.
const Kernels& kernels_of(Isa isa);

const Kernels& plain_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

}  // namespace innervoice
