#include "innervoice/stream_conv.h"

#include <algorithm>
#include <utility>

#include "cpu/codec_memory.h"
#include "cpu/voice/rows.h"

namespace innervoice {
namespace {

constexpr std::int64_t kSignalFloats =
    32768;  // of signals that are worked on together: they stay in the second cache
constexpr std::int64_t kGroupColumns = 512;  // outputs of a piece, so that they do as well
constexpr std::int64_t kShort = 32;          // products of a sum that a panel is not worth it for

std::int64_t up_to(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::int64_t steps_together(std::int64_t channels) {
  return std::clamp<std::int64_t>(kSignalFloats / channels, 96, 1024);
}

// Floats from signal to signal: an odd number of cache lines, so that signals do not share a few places of a
// cache.
std::int64_t signal_stride(std::int64_t steps) { return lines(steps + kWaveSlack) / 32 * 32 + 16; }

}  // namespace

StreamConv::StreamConv(Isa isa, const float* weight, std::vector<float> bias, std::int64_t taps,
                       std::int64_t depth, Shape shape)
    : isa_(isa),
      taps_(taps),
      depth_(depth),
      columns_(static_cast<std::int64_t>(bias.size())),
      shape_(shape),
      bias_(std::move(bias)) {
  const std::int64_t few = up_to(columns_, kWaveOut),
                     many = up_to(columns_, voice_kernels_of(isa).panel_columns);
  if (shape.stride == 1 && shape.up == 1 && (4 * few <= 3 * many || taps * depth <= kShort)) {
    grouped_ = grouped(weight, columns_, taps, depth);
    bias_.resize(static_cast<std::size_t>(few), 0.0f);
  } else {
    packed_.emplace(isa, false, weight, columns_, taps, depth);
  }
}

// Steps of a row whose results are signals already.
void StreamConv::signals(const StreamConvCall& call, Piece piece, float* memory) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t needed = piece.count + reach(), known = call.past + call.columns;
  const std::int64_t wide = signal_stride(steps_together(depth_) + reach());
  const std::int64_t some = std::clamp<std::int64_t>(known - piece.begin, 0, needed);
  for (std::int64_t c = 0; c < depth_; ++c) {
    const std::int64_t line = piece.row * depth_ + c;
    float* to = memory + c * wide;
    join(call.before + line * call.past, call.past, call.x + line * call.columns, piece.begin, some, to);
    kernels.leaky_row(to, some, shape_.slope);
    std::fill_n(to + some, needed - some, 0.0f);
  }
  float* made = memory + depth_ * wide;
  kernels.wave_conv(memory, wide, depth_, static_cast<std::int64_t>(bias_.size()), taps_, shape_.dilation,
                    grouped_.data(), bias_.data(), made, wide, piece.count);
  for (std::int64_t c = 0; c < columns_; ++c) {
    std::copy_n(made + c * wide, piece.count,
                call.y + (piece.row * columns_ + c) * call.out_columns + piece.begin - call.first);
  }
}

// Outputs first ... first + count - 1 of steps of a row.
void StreamConv::panels(const StreamConvCall& call, Piece piece, std::int64_t first, std::int64_t count,
                        float* memory) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t width = channels(), stride = shape_.stride, up = shape_.up,
                     known = call.past + call.columns;
  const std::int64_t begin = piece.begin * stride, needed = (piece.count + reach()) * stride;
  const std::int64_t some = std::clamp<std::int64_t>(known - begin, 0, needed);
  auto* table = reinterpret_cast<const float**>(memory);
  float* rows = memory + table_floats(taps_);
  float* made = rows + lines((kGathered + reach()) * depth_);
  window_of(call.before + piece.row * width * call.past, call.past, call.x + piece.row * width * call.columns,
            call.columns, width, begin, some, rows, width);
  kernels.leaky_row(rows, some * width, shape_.slope);
  std::fill_n(rows + some * width, (needed - some) * width, 0.0f);
  for (std::int64_t tap = 0; tap < taps_; ++tap) {
    for (std::int64_t m = 0; m < piece.count; ++m) {
      table[tap * piece.count + m] = rows + (m + tap * shape_.dilation) * depth_;
    }
  }
  Finish to;
  to.bias = bias_.data() + first;
  to.y = made;
  to.y_stride = count;
  kernels.gathered_product(table, piece.count, taps_, depth_,
                           static_cast<const float*>(packed_->panels()) + first * taps_ * depth_, count, to);
  float* y = call.y + piece.row * out_channels() * call.out_columns;
  const std::int64_t base = piece.begin * up - call.first;  // y's column of the first step
  if (up == 1) {
    for (std::int64_t c = 0; c < count; c += kBlock) {
      const std::int64_t end = std::min(count, c + kBlock);
      for (std::int64_t m = 0; m < piece.count; ++m) {
        for (std::int64_t i = c; i < end; ++i)
          y[(first + i) * call.out_columns + base + m] = made[m * count + i];
      }
    }
    return;
  }
  for (std::int64_t n = first;
       n < first + count;) {  // outputs of one channel, and of a step, lie side by side
    const std::int64_t v = n % up, run = std::min(up - v, first + count - n);
    float* line = y + n / up * call.out_columns;
    for (std::int64_t m = 0; m < piece.count; ++m) {
      const std::int64_t column = base + m * up + v;
      const std::int64_t from = std::max<std::int64_t>(0, -column),
                         last = std::min(run, call.out_columns - column);
      const float* sums = made + m * count + n - first;
      for (std::int64_t i = from; i < last; ++i) line[column + i] = sums[i];
    }
    n += run;
  }
}

void StreamConv::run_signals(ThreadTeam& team, const StreamConvCall& call) const {
  const Pieces pieces(call.out_columns, steps_together(depth_));
  const std::int64_t wide = signal_stride(steps_together(depth_) + reach());
  const std::int64_t floats = lines((depth_ + static_cast<std::int64_t>(bias_.size())) * wide);
  float* memory = kept_memory().floats(floats * team.num_threads());
  team.run([&](Member& me) {
    me.for_each(call.rows * pieces.number, 1, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from; i < to; ++i) {
        const std::int64_t part = i % pieces.number;
        signals(call, {i / pieces.number, call.first + pieces.begin(part), pieces.count(part)},
                memory + floats * me.index());
      }
    });
  });
}

void StreamConv::run_panels(ThreadTeam& team, const StreamConvCall& call) const {
  const std::int64_t step = call.first / shape_.up, width = voice_kernels_of(isa_).panel_columns;
  const Pieces pieces((call.first + call.out_columns + shape_.up - 1) / shape_.up - step, kGathered);
  const std::int64_t parts = call.rows * pieces.number, all = up_to(columns_, width) / width;
  const std::int64_t wanted = (kConvItemsOfAThread * team.num_threads() + parts - 1) / parts;
  const Pieces groups(all, std::clamp<std::int64_t>((all + wanted - 1) / wanted, 1, kGroupColumns / width));
  const std::int64_t floats = table_floats(taps_) + lines((kGathered + reach()) * depth_) +
                              lines(kGathered * std::min(groups.size * width, columns_));
  float* memory = kept_memory().floats(floats * team.num_threads());
  team.run([&](Member& me) {
    me.for_each(parts * groups.number, 1, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from; i < to; ++i) {
        const std::int64_t part = i % parts, piece = part % pieces.number,
                           first = groups.begin(i / parts) * width;
        panels(call, {part / pieces.number, step + pieces.begin(piece), pieces.count(piece)}, first,
               std::min(columns_ - first, groups.count(i / parts) * width), memory + floats * me.index());
      }
    });
  });
}

void StreamConv::run(ThreadTeam& team, const StreamConvCall& call) const {
  if (call.rows > 0 && call.out_columns > 0) {
    packed_ ? run_panels(team, call) : run_signals(team, call);
  }
  for (std::int64_t row = 0; row < call.rows; ++row) {
    if (call.start != nullptr) {
      for (std::int64_t c = row * out_channels(); c < (row + 1) * out_channels(); ++c) {
        clip(call.y + c * call.out_columns, call.out_columns, call.start[row], call.end[row]);
      }
    }
    if (call.after == nullptr) continue;
    for (std::int64_t c = row * channels(); c < (row + 1) * channels(); ++c) {
      join(call.before + c * call.past, call.past, call.x + c * call.columns, call.n[row], call.past,
           call.after + c * call.past);
    }
  }
}

}  // namespace innervoice
