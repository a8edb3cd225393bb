#include "innervoice/source.h"

#include <cmath>
#include <vector>

#include "innervoice/philox.h"

namespace innervoice {
namespace {

constexpr float kTurn = 6.283185307179586f;
constexpr std::int64_t kCounters = 512;  // a piece of noise
constexpr std::int64_t kFrames = 4;      // a piece of the source

// Two normals of two words, by Box and Muller.
inline void pair(const std::uint32_t* words, float* y) {
  const float radius = std::sqrt(-2.0f * std::log(uniform_of(words[0]))), angle = uniform_of(words[1]) * kTurn;
  y[0] = radius * std::cos(angle);
  y[1] = radius * std::sin(angle);
}

// The frames [first, last) of a row, whose cycles before each frame are `begins`.
void make_frames(const SourceCall& call, std::int64_t row, const double* begins, std::int64_t first,
                 std::int64_t last) {
  const std::int64_t length = call.frames * call.frame_len;
  const float* noise = call.noise == nullptr ? nullptr : call.noise + row * call.harmonics * length;
  const float* phases = call.phases == nullptr ? nullptr : call.phases + row * call.harmonics;
  float* y = call.y + row * length;
  for (std::int64_t t = first; t < last; ++t) {
    const double f0 = call.f0[row * call.frames + t], step = f0 / call.sample_rate;
    const double begin = begins[t] - std::floor(begins[t]);
    const bool voiced = f0 > call.voiced_above;
    const float loud = voiced ? call.amplitude : 0.0f, rough = voiced ? call.sigma : call.amplitude / 3;
    for (std::int64_t i = t * call.frame_len, k = 1; k <= call.frame_len; ++i, ++k) {
      const double fundamental = begin + step * static_cast<double>(k);
      float sum = 0.0f;
      for (std::int64_t h = 0; h < call.harmonics; ++h) {
        float value = 0.0f;
        if (voiced) {
          const double cycles = fundamental * static_cast<double>(h + 1);
          const float angle = static_cast<float>(cycles - std::floor(cycles)) * kTurn;
          value = loud * std::sin(phases == nullptr ? angle : angle + phases[h]);
        }
        if (noise != nullptr) value += rough * noise[h * length + i];
        sum += call.weight[h] * value;
      }
      y[i] = std::tanh(sum + call.bias);
    }
  }
}

}  // namespace

void fill_normals(ThreadTeam& team, const std::int64_t* seed, std::int64_t stream, const std::int64_t* first,
                  std::int64_t rows, std::int64_t count, std::int64_t seconds, float* y) {
  team.run([&](Member& me) {
    me.for_each(rows * seconds * count, kCounters, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t line = i / count, row = line / seconds;
        const PhiloxWords words = philox(static_cast<std::uint32_t>(first[row * count + i % count]),
                                         static_cast<std::uint32_t>(line % seconds), 0, 0,
                                         static_cast<std::uint32_t>(seed[row]), static_cast<std::uint32_t>(stream));
        pair(words.w, y + 4 * i);
        pair(words.w + 2, y + 4 * i + 2);
      }
    });
  });
}

void stream_source(ThreadTeam& team, const SourceCall& call) {
  const std::int64_t pieces = (call.frames + kFrames - 1) / kFrames;
  std::vector<double> begins(static_cast<std::size_t>(call.rows * (call.frames + 1)));
  for (std::int64_t row = 0; row < call.rows; ++row) {
    double* at = begins.data() + row * (call.frames + 1);
    double total = 0.0;
    for (std::int64_t t = 0; t <= call.frames; ++t) {
      at[t] = call.cycles[row] + total;
      if (t < call.frames) {
        total += call.f0[row * call.frames + t] / call.sample_rate * static_cast<double>(call.frame_len);
      }
    }
    const double after = at[call.n[row]];
    call.cycles_after[row] = after - std::floor(after);
  }
  team.run([&](Member& me) {
    me.for_each(call.rows * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i / pieces, first = i % pieces * kFrames;
        const std::int64_t last = first + kFrames < call.frames ? first + kFrames : call.frames;
        make_frames(call, row, begins.data() + row * (call.frames + 1), first, last);
      }
    });
  });
}

}  // namespace innervoice
