// What a kernel file offers for its instructions. Every function runs on the calling thread alone.
#pragma once

#include <cstdint>

#include "cpu/lanes/kernels.h"
#include "innervoice/fuse.h"
#include "innervoice/isa.h"
#include "innervoice/weight.h"

namespace innervoice {

// Rows of inputs as the products with a kind of weight read them. Quantised weights: whole numbers of 16 bits
// with one scale a row, its largest magnitude at 32767, in the order in which the weight's codes come out of
// their bytes.
struct Inputs {
  const float* x = nullptr;  // [M, ldx]
  std::int64_t ldx = 0;
  const std::uint16_t* bf16 = nullptr;  // [M, ld], where bfloat16 weights are multiplied as such
  const std::int16_t* codes = nullptr;  // [M, ld], 0 past K; null: x is multiplied as it is
  std::int64_t ld = 0;
  const float* scale = nullptr;  // [M]
  const std::int32_t* sums =
      nullptr;  // int4: [M, ld_sums], of each group's codes, in lanes: times -8 without a minimum
  std::int64_t ld_sums = 0;
  LaneInputs lanes;  // of a weight in lanes all that is set but x
};

// One layer's keys and values as a group of query heads reads them.
struct PagedKeys {
  const void*
      k;  // of the layer and the group: element (page, offset) at page * page_stride + offset * token_stride
  const void* v;
  bool is_bf16;  // else float32
  std::int64_t page_stride;
  std::int64_t token_stride;
  std::int64_t page_size;
  const std::int32_t* pages;    // of the row
  const std::int32_t* key_tag;  // [P, page_size], or null
};

// Queries of one row that stand one behind another, all heads of a group: query i, head h at q + i * ldq + h
// * head_dim.
struct Queries {
  const float* q;
  std::int64_t ldq;
  std::int64_t count;
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t position;    // of the first; query i sees keys up to position + i
  const std::int32_t* tag;  // [count], or null
  const float* log_weight;  // [count]
  float scale;
};

// A group's rows of logits, one behind the other, and their combination.
struct FusedRows {
  Fusing kind;
  std::int64_t count;
  const float* logits;  // [count, vocabulary]
  std::int64_t vocabulary;
  const float* stats;      // [count, 2], as FuseCall has them
  const float* log_prior;  // [count]
  float alpha, beta, log_alpha;
};

constexpr std::int64_t kFewRows = 16;  // up to which a weight is read once for all rows, beyond by blocks

struct Kernels {
  // A tile of the blocked product: tile_rows rows of x, panel_columns columns of w.
  std::int64_t tile_rows;
  std::int64_t panel_columns;

  // panel[k * panel_columns + n] = w[first + n, begin + k] for k in [0, depth), n in [0, count); 0 for n past
  // count. rows: room for panel_columns * (depth rounded up to 16) floats.
  void (*pack)(const Weight& w, std::int64_t first, std::int64_t count, std::int64_t begin,
               std::int64_t depth, float* rows, float* panel);

  // sums[n] (+)= sum_k panel[k, n]^2 of all of a panel's columns.
  void (*square_sums)(const float* panel, std::int64_t depth, float* sums, bool accumulate);

  // c[m, n] (+)= sum_k a[m, k] panel[k, n] for m in [0, rows), n in [0, columns); rows <= tile_rows.
  void (*tile)(const float* a, std::int64_t lda, std::int64_t rows, const float* panel, std::int64_t depth,
               float* c, std::int64_t ldc, std::int64_t columns, bool accumulate);

  // y[k] = w[n, begin + k] for k in [0, depth).
  void (*expand)(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y);

  // Floats of memory that `ready` needs for M rows.
  std::int64_t (*ready_floats)(const Weight& w, std::int64_t M);

  // x [M, K] made ready for w, in `memory` (aligned to a cache line); x must stay. Of quantised weights rows
  // [first, last) alone are written, so that threads may share the work; of the others all.
  Inputs (*ready)(const Weight& w, const float* x, std::int64_t ldx, std::int64_t M, float* memory,
                  std::int64_t first, std::int64_t last);

  // y[m, n - first] = sum_k x[m, k] w[n, k] for n in [first, last): for few rows, each of w is read once.
  void (*product)(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x, std::int64_t M,
                  float* y, std::int64_t ldy);

  // The same for many rows and a quantised weight, whose rows are unpacked into `memory` of panel_floats
  // floats: 0 where the blocked product is as fast.
  std::int64_t (*panel_floats)(const Weight& w);
  void (*product_of_many)(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                          std::int64_t M, float* y, std::int64_t ldy, float* memory);

  // y = x / sqrt(mean(x^2) + eps) w, D numbers; y may be x.
  void (*rms_norm)(const float* x, const float* w, float eps, std::int64_t D, float* y);

  // y = gate sigmoid(gate) up.
  void (*silu_mul)(const float* gate, const float* up, std::int64_t count, float* y);

  // Softmax attention over keys [begin, end) of the row, of which each query sees one or more. out [count *
  // heads, head_dim] is not divided by the sum of weights yet; largest and total, [count * heads], are the
  // largest score and the sum of exp(score - largest). memory: attend_floats.
  void (*attend)(const Queries& queries, const PagedKeys& keys, std::int64_t begin, std::int64_t end,
                 float* out, float* largest, float* total, float* memory);
  std::int64_t (*attend_floats)(std::int64_t rows, std::int64_t head_dim);

  // The largest of x and the sum of exp(x - largest); NaN where one of x is or the largest is infinite.
  void (*exp_total)(const float* x, std::int64_t count, float* largest, double* total);

  // out[id] of ids [first, last).
  void (*fuse_rows)(const FusedRows& rows, std::int64_t first, std::int64_t last, float* out);
};

// Throws std::invalid_argument when isa is not available here.
const Kernels& kernels_of(Isa isa);

const Kernels& plain_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

}  // namespace innervoice
