#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/voice/kernels.h"
#include "innervoice/voice.h"

namespace innervoice {

void group_norm_mish(ThreadTeam& team, Isa isa, const GroupNormCall& call) {
  const std::int64_t lines = call.rows * call.channels, width = call.channels / call.groups;
  const auto mish_row = voice_kernels_of(isa).mish_row;
  std::vector<double> sums(static_cast<std::size_t>(2 * lines));
  team.run([&](Member& me) {
    me.for_each(lines, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t line = first; line < last; ++line) {
        const float* x = call.x + line * call.columns;
        double total[2] = {}, square[2] = {};  // two chains each: a sum waits for the one before it
        const std::int64_t n = call.n[line / call.channels];
        for (std::int64_t t = 0; t < n; ++t) {
          const double value = x[t];
          total[t % 2] += value;
          square[t % 2] += value * value;
        }
        sums[static_cast<std::size_t>(2 * line)] = total[0] + total[1];
        sums[static_cast<std::size_t>(2 * line + 1)] = square[0] + square[1];
      }
    });
    me.for_each(lines, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t line = first; line < last; ++line) {
        const std::int64_t row = line / call.channels, channel = line % call.channels, n = call.n[row];
        const std::int64_t begin = row * call.channels + channel / width * width;
        double total = 0.0, square = 0.0;
        for (std::int64_t c = begin; c < begin + width; ++c) {
          total += sums[static_cast<std::size_t>(2 * c)];
          square += sums[static_cast<std::size_t>(2 * c + 1)];
        }
        const double count = static_cast<double>(std::max<std::int64_t>(n * width, 1)), mean = total / count;
        const double scale = call.weight[channel] / std::sqrt(std::max(square / count - mean * mean, 0.0) +
                                                              static_cast<double>(call.eps));
        float* y = call.y + line * call.columns;
        mish_row(call.x + line * call.columns, n, static_cast<float>(mean), static_cast<float>(scale),
                 call.bias[channel], y);
        std::fill(y + n, y + call.columns, 0.0f);
      }
    });
  });
}

}  // namespace innervoice
