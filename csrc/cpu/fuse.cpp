#include "innervoice/fuse.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kPiece = 4096;  // ids that a thread takes at once

// Largest logits and sums of a row's pieces become those of the row.
void join(const float* largest, const double* total, std::int64_t count, float* stats) {
  float most = -std::numeric_limits<float>::infinity();
  double sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, largest[i]);
  for (std::int64_t i = 0; i < count; ++i) {
    const bool is_empty = total[i] == 0.0;
    sum += is_empty ? 0.0 : total[i] * std::exp(static_cast<double>(largest[i]) - static_cast<double>(most));
  }
  stats[0] = sum == sum ? most : std::numeric_limits<float>::quiet_NaN();
  stats[1] = static_cast<float>(std::log(sum));
}

}  // namespace

void fuse(ThreadTeam& team, Isa isa, const FuseCall& call) {
  const Kernels& kernels = kernels_of(isa);
  const std::int64_t V = call.vocabulary, pieces = (V + kPiece - 1) / kPiece;
  std::vector<float> largest(static_cast<std::size_t>(call.rows * pieces));
  std::vector<double> total(largest.size());
  team.run([&](Member& me) {
    me.for_each(call.rows * pieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i % pieces * kPiece;
        const auto at = static_cast<std::size_t>(i);
        kernels.exp_total(call.logits + i / pieces * V + begin, std::min(kPiece, V - begin), &largest[at],
                          &total[at]);
      }
    });
    me.for_each(call.rows, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        join(largest.data() + row * pieces, total.data() + row * pieces, pieces, call.stats + 2 * row);
      }
    });
    me.for_each(call.groups * pieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t group = i / pieces, begin = i % pieces * kPiece, end = std::min(begin + kPiece, V);
        const std::int64_t row = call.offsets[group];
        const float *logits = call.logits + row * V, *weights = call.weights + 3 * group;
        float* out = call.out + group * V;
        const auto kind = static_cast<Fusing>(call.kinds[group]);
        if (kind == Fusing::kFirst) {
          std::copy(logits + begin, logits + end, out + begin);
          continue;
        }
        const FusedRows rows{kind,
                             call.offsets[group + 1] - row,
                             logits,
                             V,
                             call.stats + 2 * row,
                             call.log_prior + row,
                             weights[0],
                             weights[1],
                             weights[2]};
        kernels.fuse_rows(rows, begin, end, out);
      }
    });
  });
}

}  // namespace innervoice
