#include <algorithm>

#include "cpu/codec_memory.h"
#include "innervoice/codec.h"

namespace innervoice {

std::int64_t EluUnit::piece_floats(std::int64_t count, std::int64_t steps) const {
  const std::int64_t seams = (count + steps - 1) / steps + 1;  // rows that a piece has a part of
  return lines((count + seams * reach()) * depth()) + lines(count * wide_.weight.columns());
}

// Steps begin ... begin + count - 1 of all rows'.
void EluUnit::some(const Window& window, std::int64_t steps, std::int64_t begin, std::int64_t count, bool elu,
                   float* y, float* memory, const float** table) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t width = depth(), taps = wide_.weight.taps(), inner = wide_.weight.columns();
  float* hidden = memory;
  float* past = hidden + lines(count * inner);
  for (std::int64_t m = 0; m < count;) {
    const std::int64_t row = (begin + m) / steps, t = (begin + m) % steps,
                       some = std::min(count - m, steps - t);
    const std::int64_t end = t + some + reach(), seam = std::clamp(window.past, t, end);
    kernels.elu_row(window.column(row, t), (seam - t) * width, past);
    kernels.elu_row(window.column(row, seam), (end - seam) * width, past + (seam - t) * width);
    for (std::int64_t i = 0; i < some; ++i) {
      for (std::int64_t tap = 0; tap < taps; ++tap)
        table[tap * count + m + i] = past + (i + tap * dilation_) * width;
    }
    past += (some + reach()) * width;
    m += some;
  }
  Finish to;
  to.bias = wide_.bias.data();
  to.elu = true;
  to.y = hidden;
  to.y_stride = inner;
  const auto product = [&](const Affine& layer, std::int64_t layer_taps) {
    kernels.gathered_product(table, count, layer_taps, layer.weight.depth(),
                             static_cast<const float*>(layer.weight.panels()), layer.weight.columns(), to);
  };
  product(wide_, taps);
  to = Finish{};
  to.y = y + begin * width;
  to.y_stride = to.add_stride = width;
  const auto standing = [&](std::int64_t m) {
    return window.column((begin + m) / steps, (begin + m) % steps + reach());
  };
  if (shortcut_) {
    for (std::int64_t m = 0; m < count; ++m) table[m] = standing(m);
    to.bias = shortcut_->bias.data();
    product(*shortcut_, 1);
  } else {
    for (std::int64_t m = 0; m < count; ++m) std::copy_n(standing(m), width, to.y + m * width);
  }
  for (std::int64_t m = 0; m < count; ++m) table[m] = hidden + m * inner;
  to.bias = narrow_.bias.data();
  to.add = to.y;
  to.elu_last = elu;
  product(narrow_, 1);
}

void EluUnit::run(ThreadTeam& team, const Window& window, bool elu, float* y) const {
  const std::int64_t steps = window.past + window.columns - reach(), total = window.rows * steps;
  if (total <= 0) return;
  const Pieces pieces(total, std::min(kGathered, (total + team.num_threads() - 1) / team.num_threads()));
  const std::int64_t addresses = table_floats(wide_.weight.taps());
  const std::int64_t floats = addresses + piece_floats(pieces.size, steps);
  float* memory = kept_memory().floats(floats * team.num_threads());
  team.run([&](Member& me) {
    float* own = memory + floats * me.index();
    me.for_each(pieces.number, 1, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from; i < to; ++i) {
        some(window, steps, pieces.begin(i), pieces.count(i), elu, y, own + addresses,
             reinterpret_cast<const float**>(own));
      }
    });
  });
}

}  // namespace innervoice
