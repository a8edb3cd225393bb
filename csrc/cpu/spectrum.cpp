#include "innervoice/spectrum.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/voice/memory.h"

namespace innervoice {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr float kLeast = 1e-10f;           // of a mel's power
constexpr float kLeastEnvelope = 1e-6f;    // of squared windows, below which there is no frame
constexpr float kLog10 = 0.434294481903f;  // log10(e)

// cos or sin of 2 pi k j / size, exact where the product of the two is large.
double turn(std::int64_t k, std::int64_t j, std::int64_t size, bool sine) {
  const double angle = 2 * kPi * static_cast<double>(k * j % size) / static_cast<double>(size);
  return sine ? std::sin(angle) : std::cos(angle);
}

// e^(-2 pi i k j / size), its two parts.
void push_turn(std::vector<double>& to, std::int64_t k, std::int64_t j, std::int64_t size) {
  to.push_back(turn(k, j, size, false));
  to.push_back(-turn(k, j, size, true));
}

// The next factor of what is left: 4 where it can be, else the least prime.
std::int64_t next_radix(std::int64_t left) {
  if (left % 4 == 0) return 4;
  std::int64_t radix = 2;
  while (left % radix != 0) ++radix;
  return radix;
}

// Samples by real parts of all bins, then imaginary ones of bins 1 ... size / 2 - 1.
PackedWeight backward(Isa isa, std::int64_t size) {
  const double part = 1.0 / static_cast<double>(size);
  std::vector<float> w;
  for (std::int64_t j = 0; j < size; ++j) {
    for (std::int64_t k = 0; k <= size / 2; ++k) {
      const double twice = k == 0 || k == size / 2 ? part : 2 * part;
      w.push_back(static_cast<float>(twice * turn(k, j, size, false)));
    }
    for (std::int64_t k = 1; k < size / 2; ++k)
      w.push_back(static_cast<float>(-2 * part * turn(k, j, size, true)));
  }
  return {isa, false, w.data(), size, 1, size};
}

Finish to_rows(float* y, std::int64_t stride) {
  Finish to;
  to.y = y;
  to.y_stride = stride;
  return to;
}

// What a stream keeps after n of its columns: the last `kept` of state and x[0 .. n).
void keep_last(const float* state, const float* x, std::int64_t kept, std::int64_t n, float* after) {
  for (std::int64_t i = 0; i < kept; ++i) after[i] = n + i < kept ? state[n + i] : x[n + i - kept];
}

// Runs body(row, first, count, member) over pieces of `total` steps of every row.
template <typename Body>
void each_piece(ThreadTeam& team, std::int64_t rows, std::int64_t total, Body&& body) {
  const std::int64_t pieces = (total + kFrames - 1) / kFrames;
  team.run([&](Member& me) {
    me.for_each(rows * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t first = i % pieces * kFrames;
        body(i / pieces, first, std::min(kFrames, total - first), me);
      }
    });
  });
}

// Floats that the spectra of a piece take.
std::int64_t frame_floats(std::int64_t size) {
  return lines(2 * (kFrames + kFourierLanes) * (size / 2 + 1)) + 4 * kFourierLanes * size;
}

}  // namespace

RealTransform::RealTransform(Isa isa, std::int64_t size)
    : isa_(isa), size_(size), back_(backward(isa, size)) {
  for (std::int64_t left = size / 2, stride = 1; left > 1;) {
    const std::int64_t radix = next_radix(left), groups = left / radix;
    Stage stage{radix, groups, stride, {}, {}};
    for (std::int64_t i = 0; i < radix; ++i) push_turn(stage.turns, 1, i, radix);
    for (std::int64_t p = 0; p < groups; ++p) {
      for (std::int64_t k = 0; k < radix; ++k) push_turn(stage.twiddles, p, k, left);
    }
    stages_.push_back(std::move(stage));
    left = groups;
    stride *= radix;
  }
  for (std::int64_t k = 0; k <= size / 2; ++k) push_turn(turns_, 1, k, size);
}

// Spectra of `count` frames, at(frame, i) their samples: [bins, kFrames] real parts at memory, then imaginary
// ones; more memory behind them, frame_floats(size) in all.
template <typename At, typename W>
void RealTransform::spectra(std::int64_t count, At&& at, const W* window, float* memory) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  constexpr std::int64_t lanes = kFourierLanes;
  const std::int64_t half = size_ / 2;
  float *real = memory, *imag = real + kFrames * bins();
  float *made = imag + kFrames * bins(), *made_imag = made + bins() * lanes;
  auto* z = reinterpret_cast<double*>(memory + lines(2 * (kFrames + lanes) * bins()));
  std::vector<FourierStep> steps;
  for (const Stage& stage : stages_) {
    steps.push_back({stage.radix, stage.groups, stage.stride, stage.turns.data(), stage.twiddles.data()});
  }
  const FourierPlan plan{size_, static_cast<std::int64_t>(steps.size()), steps.data(), turns_.data()};
  for (std::int64_t first = 0; first < count; first += lanes) {
    const std::int64_t some = std::min(lanes, count - first);
    if (some < lanes) std::fill_n(z, size_ * lanes, 0.0);
    for (std::int64_t f = 0; f < some; ++f) {
      for (std::int64_t i = 0; i < size_; ++i) {
        z[(i % 2 * half + i / 2) * lanes + f] = static_cast<double>(at(first + f, i)) * window[i];
      }
    }
    kernels.real_fourier(plan, z, made, made_imag);
    for (std::int64_t k = 0; k < bins(); ++k) {
      std::copy_n(made + k * lanes, some, real + k * kFrames + first);
      std::copy_n(made_imag + k * lanes, some, imag + k * kFrames + first);
    }
  }
}

void RealTransform::stft(ThreadTeam& team, const StftCall& call) const {
  const std::int64_t frames = call.columns / call.hop, kept = size_ - call.hop,
                     last = kept + call.columns - 1;
  const std::int64_t own = frame_floats(size_);
  float* memory = kept_memory().floats(own * team.num_threads());
  for (std::int64_t row = 0; row < call.rows; ++row) {
    keep_last(call.state + row * kept, call.x + row * call.columns, kept, call.n[row],
              call.state_after + row * kept);
  }
  each_piece(
      team, call.rows, frames, [&](std::int64_t row, std::int64_t first, std::int64_t count, Member& me) {
        const float *state = call.state + row * kept, *x = call.x + row * call.columns;
        const std::int64_t origin = call.start[row] - kept, end = call.end[row] - 1, begin = first * call.hop;
        const auto at = [&](std::int64_t f, std::int64_t i) {
          std::int64_t position = std::abs(origin + begin + f * call.hop + i);
          if (position > end) position = 2 * end - position;
          const std::int64_t place = std::clamp<std::int64_t>(position - origin, 0, last);
          return place < kept ? state[place] : x[place - kept];
        };
        const auto plain = [&](std::int64_t f, std::int64_t i) { return x[begin - kept + f * call.hop + i]; };
        float* real = memory + me.index() * own;
        const std::int64_t most = origin + begin + (count - 1) * call.hop + size_ - 1;
        if (begin >= kept && origin + begin >= 0 && most <= end) {
          spectra(count, plain, call.window, real);
        } else {
          spectra(count, at, call.window, real);
        }
        float* y = call.y + row * 2 * bins() * frames + first;
        for (std::int64_t k = 0; k < 2 * bins(); ++k) std::copy_n(real + k * kFrames, count, y + k * frames);
      });
}

// Samples [count, size] of frames first ... first + count - 1, without the window; 0 for those that count for
// nothing.
void RealTransform::samples_of(const IstftCall& call, std::int64_t row, std::int64_t first,
                               std::int64_t count, float* parts, float* y) const {
  const float* real = call.real + row * bins() * call.frames;
  const float* imag = call.imag + row * bins() * call.frames;
  for (std::int64_t f = 0; f < count; ++f) {
    const std::int64_t t = first + f, position = call.start[row] + t;
    float* part = parts + f * size_;
    if (t < 0 || t >= call.n[row] || position < 0 || position >= call.end[row]) {
      std::fill_n(part, size_, 0.0f);
      continue;
    }
    for (std::int64_t k = 0; k < bins(); ++k) part[k] = real[k * call.frames + t];
    for (std::int64_t k = 1; k < bins() - 1; ++k) part[bins() + k - 1] = imag[k * call.frames + t];
  }
  voice_kernels_of(isa_).floats.product(parts, size_, count, 1, 0, size_, back_.panels(), size_,
                                        to_rows(y, size_));
}

void RealTransform::istft(ThreadTeam& team, const IstftCall& call) const {
  const std::int64_t hop = call.hop,
                     reach = (size_ + hop - 1) / hop;  // frames that a sample gets something of
  const std::int64_t kept = size_ - hop, begin = call.first / hop,
                     steps = (call.first + call.columns - 1) / hop + 1;
  const std::int64_t most = kFrames + reach - 1, parts_floats = lines(most * size_);
  float* memory = kept_memory().floats(2 * parts_floats * team.num_threads());
  const auto adds = [&](std::int64_t row, float* made, std::int64_t first, std::int64_t sample) {
    // What frames up to the sample's own add, in their order; made: frames from `first` on.
    float sum = call.state != nullptr && sample < kept ? call.state[row * kept + sample] : 0.0f;
    for (std::int64_t t = std::max<std::int64_t>(0, sample / hop - reach + 1); t <= sample / hop; ++t) {
      const std::int64_t place = sample - t * hop;
      if (place < size_) sum += made[(t - first) * size_ + place] * call.window[place];
    }
    return sum;
  };
  const auto envelope = [&](std::int64_t row, std::int64_t sample) {
    float total = 0.0f;
    for (std::int64_t t = sample / hop - reach + 1; t <= sample / hop; ++t) {
      const std::int64_t place = sample - t * hop, position = call.start[row] + t;
      if (place < size_ && position >= 0 && position < call.end[row])
        total += call.window[place] * call.window[place];
    }
    return total > kLeastEnvelope ? total : 1.0f;
  };
  std::vector<float> whole(static_cast<std::size_t>(hop), 0.0f);  // the envelope where all frames are there
  for (std::int64_t place = size_; place-- > 0;) {
    whole[static_cast<std::size_t>(place % hop)] += call.window[place] * call.window[place];
  }
  for (float& total : whole) total = total > kLeastEnvelope ? total : 1.0f;
  if (call.columns > 0) {
    each_piece(team, call.rows, steps - begin,
               [&](std::int64_t row, std::int64_t from, std::int64_t count, Member& me) {
                 float *parts = memory + me.index() * 2 * parts_floats, *made = parts + parts_floats;
                 const std::int64_t step = begin + from, first = step - reach + 1;
                 samples_of(call, row, first, count + reach - 1, parts, made);
                 float* y = call.y + row * call.columns;
                 for (std::int64_t t = step; t < step + count; ++t) {
                   const std::int64_t position = call.start[row] + t;
                   const bool is_whole = position - reach + 1 >= 0 && position < call.end[row];
                   for (std::int64_t i = 0; i < hop; ++i) {
                     const std::int64_t sample = t * hop + i, column = sample - call.first;
                     if (column < 0 || column >= call.columns) continue;
                     const float total =
                         is_whole ? whole[static_cast<std::size_t>(i)] : envelope(row, sample);
                     y[column] = adds(row, made, first, sample) / total;
                   }
                 }
               });
  }
  if (call.state_after == nullptr) return;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    const std::int64_t n = call.n[row], first = n - reach + 1;
    float *parts = memory, *made = memory + parts_floats, *after = call.state_after + row * kept;
    if (n == 0) {
      std::copy_n(call.state + row * kept, kept, after);
      continue;
    }
    samples_of(call, row, first, 2 * reach - 1, parts, made);  // those from n on are zero
    for (std::int64_t i = 0; i < kept; ++i) after[i] = adds(row, made, first, n * hop + i);
  }
}

void RealTransform::log_mel(ThreadTeam& team, const LogMelCall& call) const {
  const std::int64_t frames = (call.columns - size_) / call.hop + 1, own = frame_floats(size_) + kFrames;
  std::vector<double> window;
  for (std::int64_t i = 0; i < size_; ++i) window.push_back(0.5 - 0.5 * turn(1, i, size_, false));
  std::vector<std::int64_t> first_bin, last_bin;  // that a mel hears
  for (std::int64_t m = 0; m < call.mels; ++m) {
    std::int64_t low = 0, high = bins();
    while (low < high && call.filters[low * call.mels + m] == 0.0f) ++low;
    while (high > low && call.filters[(high - 1) * call.mels + m] == 0.0f) --high;
    first_bin.push_back(low);
    last_bin.push_back(high);
  }
  float* memory = kept_memory().floats(own * team.num_threads());
  each_piece(team, call.rows, frames,
             [&](std::int64_t row, std::int64_t first, std::int64_t count, Member& me) {
               float *sums = memory + me.index() * own, *power = sums + kFrames;
               const float *from = call.samples + row * call.columns + first * call.hop,
                           *imag = power + kFrames * bins();
               spectra(
                   count, [&](std::int64_t f, std::int64_t i) { return from[f * call.hop + i]; },
                   window.data(), power);
               for (std::int64_t k = 0; k < bins(); ++k) {
                 for (std::int64_t i = k * kFrames; i < k * kFrames + count; ++i)
                   power[i] = power[i] * power[i] + imag[i] * imag[i];
               }
               for (std::int64_t m = 0; m < call.mels; ++m) {
                 std::fill_n(sums, count, 0.0f);
                 for (std::int64_t k = first_bin[static_cast<std::size_t>(m)];
                      k < last_bin[static_cast<std::size_t>(m)]; ++k) {
                   const float weight = call.filters[k * call.mels + m];
                   for (std::int64_t f = 0; f < count; ++f) sums[f] += weight * power[k * kFrames + f];
                 }
                 float* y = call.y + (row * call.mels + m) * frames + first;
                 for (std::int64_t f = 0; f < count; ++f) y[f] = std::log(std::max(sums[f], kLeast)) * kLog10;
               }
             });
}

}  // namespace innervoice
