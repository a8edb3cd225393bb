#include <algorithm>

#include "cpu/codec_memory.h"
#include "innervoice/codec.h"

namespace innervoice {
namespace {

constexpr std::int64_t kFew = 4;  // columns that do not fill a vector

}  // namespace

TapsConv::TapsConv(Isa isa, const float* weight, std::vector<float> bias, std::int64_t taps,
                   std::int64_t depth, std::int64_t dilation)
    : isa_(isa), taps_(taps), depth_(depth), dilation_(dilation), bias_(std::move(bias)) {
  if (columns() <= kFew) {
    plain_.assign(weight, weight + columns() * taps * depth);
  } else {
    packed_.emplace(isa, false, weight, columns(), taps, depth);
  }
}

// Addresses of what each tap sees of steps begin ... begin + count - 1 of all rows'.
void TapsConv::find(const Window& window, std::int64_t steps, std::int64_t begin, std::int64_t count,
                    const float** table) const {
  for (std::int64_t m = 0; m < count; ++m) {
    const std::int64_t row = (begin + m) / steps, t = (begin + m) % steps;
    for (std::int64_t tap = 0; tap < taps_; ++tap)
      table[tap * count + m] = window.column(row, t + tap * dilation_);
  }
}

void TapsConv::run(ThreadTeam& team, const Window& window, float* y) const {
  const std::int64_t steps = window.past + window.columns - reach(), total = window.rows * steps;
  if (total <= 0) return;
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t floats = table_floats(taps_);
  float* memory = kept_memory().floats(floats * team.num_threads());
  const auto each = [&](std::int64_t number, auto&& body) {
    team.run([&](Member& me) {
      auto* table = reinterpret_cast<const float**>(memory + floats * me.index());
      me.for_each(number, 1, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) body(i, table);
      });
    });
  };
  if (!packed_) {
    const Pieces rows(total, kGathered);
    each(rows.number, [&](std::int64_t i, const float** table) {
      find(window, steps, rows.begin(i), rows.count(i), table);
      kernels.gathered_dots(table, rows.count(i), taps_, depth_, plain_.data(), columns(), bias_.data(),
                            y + rows.begin(i) * columns());
    });
    return;
  }
  const Items items(isa_, *packed_, total, team.num_threads());
  each(items.number(), [&](std::int64_t i, const float** table) {
    const std::int64_t begin = items.rows().begin(items.piece(i)), count = items.rows().count(items.piece(i));
    find(window, steps, begin, count, table);
    Finish to;
    to.bias = bias_.data() + items.first(i);
    to.y = y + begin * columns() + items.first(i);
    to.y_stride = columns();
    kernels.gathered_product(table, count, taps_, depth_, items.panels(i), items.count(i), to);
  });
}

void snake(ThreadTeam& team, Isa isa, const float* x, std::int64_t rows, std::int64_t channels,
           const float* alpha, float* y) {
  const auto run = voice_kernels_of(isa).floats.snake;
  const std::int64_t grain = std::max<std::int64_t>(1, 4096 / channels);
  team.run([&](Member& me) {
    me.for_each(rows, grain, [&](std::int64_t first, std::int64_t last) {
      run(x + first * channels, last - first, channels, alpha, y + first * channels);
    });
  });
}

}  // namespace innervoice
