#include "innervoice/codebook.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/codec_memory.h"
#include "cpu/kernels.h"
#include "innervoice/gemm.h"

namespace innervoice {
namespace {

constexpr std::int64_t kCodes = 64, kRows = 256;  // whose products are made together
constexpr std::int64_t kItemsOfAThread = 4;       // so that threads end together
constexpr std::int64_t kDepth = 256;    // columns of both at a time: a panel stays in the first cache
constexpr std::int64_t kFewFrames = 4;  // that a thread takes at a time
constexpr int kChains = 8;
constexpr float kFar = std::numeric_limits<float>::infinity();

struct Found {
  float distance = kFar;
  std::int64_t code = 0;
};

// Of kCodes products the nearest code, where it is nearer than what was found before.
void update(const float* products, const float* lengths, std::int64_t first, Found& found) {
  float distance[kCodes], least[kChains];
  std::fill_n(least, kChains, kFar);
  for (std::int64_t n = 0; n < kCodes; n += kChains) {
    for (int i = 0; i < kChains; ++i) {
      distance[n + i] = lengths[n + i] - 2.0f * products[n + i];
      least[i] = distance[n + i] < least[i] ? distance[n + i] : least[i];
    }
  }
  const float nearest = *std::min_element(least, least + kChains);
  if (nearest < found.distance)
    found = {nearest, first + (std::find(distance, distance + kCodes, nearest) - distance)};
}

// Products of rows with some codes, [rows, kCodes], and the codes' squared lengths. Both are added up a slice
// of columns at a time.
void multiply(const Kernels& kernels, const float* x, std::int64_t rows, const Weight& codes,
              std::int64_t first, std::int64_t count, float* memory, float* products, float* lengths) {
  const std::int64_t width = kernels.panel_columns;
  float* panel = memory + width * kDepth;
  for (std::int64_t begin = 0; begin < codes.columns || begin == 0; begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, codes.columns - begin);
    for (std::int64_t n = 0; n < count; n += width) {
      kernels.pack(codes, first + n, std::min(width, count - n), begin, depth, memory, panel);
      kernels.square_sums(panel, depth, lengths + n, begin > 0);
      for (std::int64_t m = 0; m < rows; m += kernels.tile_rows) {
        kernels.tile(x + m * codes.columns + begin, codes.columns, std::min(kernels.tile_rows, rows - m),
                     panel, depth, products + m * kCodes + n, kCodes, width, begin > 0);
      }
    }
  }
}

// Codes begin ... end - 1 for some rows.
void search(const Kernels& kernels, const float* x, std::int64_t rows, const Weight& codes,
            std::int64_t begin, std::int64_t end, Found* found) {
  static thread_local Scratch memory;
  float* products = memory.floats(rows * kCodes + 2 * kernels.panel_columns * kDepth);
  float lengths[kCodes];
  for (std::int64_t first = begin; first < end; first += kCodes) {
    const std::int64_t count = std::min(kCodes, end - first);
    if (count < kCodes) std::fill_n(products, rows * kCodes, 0.0f);
    multiply(kernels, x, rows, codes, first, count, products + rows * kCodes, products, lengths);
    std::fill(lengths + count, lengths + kCodes, kFar);
    for (std::int64_t m = 0; m < rows; ++m) update(products + m * kCodes, lengths, first, found[m]);
  }
}

}  // namespace

void nearest_code(ThreadTeam& team, Isa isa, const float* x, std::int64_t M, const Weight& codes,
                  std::int64_t* ids) {
  if (M == 0) return;
  const Kernels& kernels = kernels_of(isa);
  const Pieces rows(M, kRows), blocks((codes.rows + kCodes - 1) / kCodes, 1);
  const std::int64_t wanted = (kItemsOfAThread * team.num_threads() + rows.number - 1) / rows.number;
  const Pieces groups(blocks.number, (blocks.number + wanted - 1) / wanted);
  std::vector<Found> found(static_cast<std::size_t>(M * groups.number));
  team.run([&](Member& me) {
    me.for_each(rows.number * groups.number, 1, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from; i < to; ++i) {
        const std::int64_t part = i % rows.number, group = i / rows.number,
                           begin = groups.begin(group) * kCodes;
        search(kernels, x + rows.begin(part) * codes.columns, rows.count(part), codes, begin,
               std::min(codes.rows, begin + groups.count(group) * kCodes),
               found.data() + group * M + rows.begin(part));
      }
    });
  });
  for (std::int64_t m = 0; m < M; ++m) {
    Found nearest;
    for (std::int64_t group = 0; group < groups.number; ++group) {
      const Found& one = found[static_cast<std::size_t>(group * M + m)];
      if (one.distance < nearest.distance) nearest = one;
    }
    ids[m] = nearest.code;
  }
}

void sum_codes(ThreadTeam& team, Isa isa, const std::int64_t* ids, std::int64_t B, std::int64_t T,
               const Weight& codes, std::int64_t N, const std::vector<std::int64_t>& sizes, float* z) {
  const Kernels& kernels = kernels_of(isa);
  const auto groups = static_cast<std::int64_t>(sizes.size());
  const std::int64_t width = codes.columns, books = codes.rows / N;
  team.run([&](Member& me) {
    me.for_each(B * T, kFewFrames, [&](std::int64_t from, std::int64_t to) {
      static thread_local Scratch memory;
      float* code = memory.floats(width);
      for (std::int64_t m = from; m < to; ++m) {
        const std::int64_t* own = ids + m / T * books * T + m % T;
        std::int64_t k = 0;
        for (std::int64_t g = 0; g < groups; ++g) {
          float* sum = z + (m * groups + g) * width;
          const std::int64_t first = k;
          for (; k < first + sizes[static_cast<std::size_t>(g)]; ++k) {
            kernels.expand(codes, k * N + own[k * T], 0, width, k == first ? sum : code);
            for (std::int64_t d = 0; k > first && d < width; ++d) sum[d] += code[d];
          }
        }
      }
    });
  });
}

}  // namespace innervoice
