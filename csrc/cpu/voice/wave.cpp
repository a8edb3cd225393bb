#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/voice/memory.h"
#include "cpu/voice/rows.h"

namespace innervoice {
namespace {

constexpr std::int64_t kWaveFloats = 4096;  // of a signal's piece: its buffers stay in the second cache

std::int64_t columns_of(std::int64_t channels) { return kWaveFloats / channels; }

}  // namespace

WaveUnit::WaveUnit(Isa isa, std::int64_t channels, std::int64_t taps, std::int64_t dilation,
                   std::vector<float> alpha, const float* first, std::vector<float> first_bias,
                   std::vector<float> beta, const float* second, std::vector<float> second_bias)
    : isa_(isa),
      channels_(channels),
      taps_(taps),
      dilation_(dilation),
      alpha_(std::move(alpha)),
      first_bias_(std::move(first_bias)),
      beta_(std::move(beta)),
      second_bias_(std::move(second_bias)),
      first_(grouped(first, channels, taps, channels)),
      second_(grouped(second, channels, taps, channels)) {
  voice_kernels_of(isa);
}

std::int64_t WaveUnit::stride() const {
  return lines(columns_of(channels_) + 2 * half() * (dilation_ + 1) + kWaveSlack);
}

// Columns begin ... begin + count - 1 of y, and what they leave of the middle.
void WaveUnit::piece(const ResidualCall& call, std::int64_t row, std::int64_t begin, std::int64_t count,
                     float* memory) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t columns = call.columns, wide = stride(), buffer = channels_ * wide;
  const std::int64_t reach = 2 * half() * dilation_, inner = 2 * half(), delay = half() * (dilation_ + 1);
  const std::int64_t middle_count = count + inner, made_first = std::max<std::int64_t>(begin - inner, 0);
  const std::int64_t made = begin + count - made_first, kept = middle_count - made, past_count = made + reach;
  float *past = memory, *bent = past + buffer, *middle = bent + buffer;
  std::fill_n(bent + call.channels * wide, (channels_ - call.channels) * wide, 0.0f);
  for (std::int64_t c = 0; c < call.channels; ++c) {
    const std::int64_t line = row * call.channels + c;
    join(call.history + line * reach, reach, call.x + line * columns, made_first, past_count,
         past + c * wide);
    kernels.wave_snake(past + c * wide, past_count, alpha_[static_cast<std::size_t>(c)], bent + c * wide);
  }
  kernels.wave_conv(bent, wide, channels_, channels_, taps_, dilation_, first_.data(), first_bias_.data(),
                    middle + kept, wide, made);
  for (std::int64_t c = 0; c < call.channels; ++c) {
    const std::int64_t line = row * call.channels + c;
    float *signal = middle + c * wide, *fresh = signal + kept;
    if (call.start != nullptr)
      clip(fresh, made, call.start[row] - half() * dilation_ + made_first, call.end[row]);
    if (kept > 0) std::copy_n(call.inner + line * inner + begin, kept, signal);
    for (std::int64_t i = 0; i < inner; ++i) {  // column n + i of inner ++ middle, where it was made here
      const std::int64_t column = call.n[row] + i - inner;
      if (column >= begin && column < begin + count)
        call.inner_after[line * inner + i] = fresh[column - made_first];
    }
    kernels.wave_snake(signal, middle_count, beta_[static_cast<std::size_t>(c)], bent + c * wide);
  }
  kernels.wave_conv(bent, wide, channels_, channels_, taps_, 1, second_.data(), second_bias_.data(), middle,
                    wide, count);
  for (std::int64_t c = 0; c < call.channels; ++c) {
    float* result = middle + c * wide;
    if (call.start != nullptr) clip(result, count, call.start[row] - delay + begin, call.end[row]);
    const float* skipped = past + c * wide + begin - made_first + reach - delay;
    float* y = call.y + (row * call.channels + c) * columns + begin;
    for (std::int64_t t = 0; t < count; ++t) y[t] = result[t] + skipped[t];
  }
}

void WaveUnit::run(ThreadTeam& team, const ResidualCall& call) const {
  const std::int64_t size = columns_of(channels_), pieces = (call.columns + size - 1) / size;
  const std::int64_t floats = 3 * channels_ * stride();
  float* memory = kept_memory().floats(floats * team.num_threads());
  team.run([&](Member& me) {
    me.for_each(call.rows * pieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i % pieces * size;
        piece(call, i / pieces, begin, std::min(size, call.columns - begin), memory + me.index() * floats);
      }
    });
    me.for_each(call.rows, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row)
        keep_past(call, row, 2 * half() * dilation_, 2 * half());
    });
  });
}

}  // namespace innervoice
