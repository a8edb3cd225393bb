#include <algorithm>
#include <utility>

#include "cpu/codec_memory.h"
#include "cpu/voice/rows.h"
#include "innervoice/stream_conv.h"

namespace innervoice {

DoubleConv::DoubleConv(Isa isa, const double* weight, std::vector<double> bias, std::int64_t taps,
                       std::int64_t depth, std::int64_t dilation)
    : isa_(isa),
      taps_(taps),
      depth_(depth),
      columns_(static_cast<std::int64_t>(bias.size())),
      dilation_(dilation),
      bias_(std::move(bias)) {
  const std::int64_t width = voice_kernels_of(isa).double_columns, panels = (columns_ + width - 1) / width;
  bias_.resize(static_cast<std::size_t>(panels * width), 0.0);
  panels_.resize(static_cast<std::size_t>(panels * width * taps * depth), 0.0);
  for (std::int64_t n = 0; n < columns_; ++n) {
    for (std::int64_t k = 0; k < taps * depth; ++k) {
      panels_[static_cast<std::size_t>((n / width * taps * depth + k) * width + n % width)] =
          weight[n * taps * depth + k];
    }
  }
}

// Outputs first ... first + count - 1, whole panels of them, of some columns of a row.
void DoubleConv::piece(const DoubleConvCall& call, std::int64_t row, std::int64_t begin, std::int64_t columns,
                       std::int64_t first, std::int64_t count, double* memory) const {
  auto* table = reinterpret_cast<const double**>(memory);
  double* rows = memory + taps_ * kGathered;
  double* made = rows + (kGathered + reach()) * depth_;
  window_of(call.before + row * depth_ * reach(), reach(), call.x + row * depth_ * call.columns, call.columns,
            depth_, begin, columns + reach(), rows, depth_);
  for (std::int64_t tap = 0; tap < taps_; ++tap) {
    for (std::int64_t m = 0; m < columns; ++m)
      table[tap * columns + m] = rows + (m + tap * dilation_) * depth_;
  }
  voice_kernels_of(isa_).double_product(table, columns, taps_, depth_,
                                        panels_.data() + first * taps_ * depth_, count, bias_.data() + first,
                                        made);
  for (std::int64_t i = 0; i < std::min(count, columns_ - first); ++i) {
    double* y = call.y + (row * columns_ + first + i) * call.columns;
    for (std::int64_t m = 0; m < columns; ++m) y[begin + m] = made[m * count + i];
    if (call.start != nullptr) clip(y + begin, columns, call.start[row] + begin, call.end[row]);
  }
}

void DoubleConv::run(ThreadTeam& team, const DoubleConvCall& call) const {
  if (call.rows > 0 && call.columns > 0) {
    const std::int64_t width = voice_kernels_of(isa_).double_columns;
    const std::int64_t all = static_cast<std::int64_t>(bias_.size()) / width;
    const Pieces pieces(call.columns, kGathered);
    const std::int64_t parts = call.rows * pieces.number;
    const Pieces groups(all,
                        std::max<std::int64_t>(1, all * parts / (kConvItemsOfAThread * team.num_threads())));
    const std::int64_t doubles =
        lines(taps_ * kGathered + (kGathered + reach()) * depth_ + kGathered * groups.size * width);
    auto* memory = reinterpret_cast<double*>(kept_memory().floats(2 * doubles * team.num_threads()));
    team.run([&](Member& me) {
      me.for_each(parts * groups.number, 1, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) {
          const std::int64_t part = i % parts, some = part % pieces.number, group = i / parts;
          piece(call, part / pieces.number, pieces.begin(some), pieces.count(some),
                groups.begin(group) * width, groups.count(group) * width, memory + doubles * me.index());
        }
      });
    });
  }
  for (std::int64_t row = 0; row < call.rows; ++row) {
    for (std::int64_t c = row * depth_; c < (row + 1) * depth_; ++c) {
      join(call.before + c * reach(), reach(), call.x + c * call.columns, call.n[row], reach(),
           call.after + c * reach());
    }
  }
}

}  // namespace innervoice
