#include "innervoice/source.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/voice/kernels.h"

namespace innervoice {
namespace {

constexpr float kTurn = 6.283185307179586f;
constexpr std::int64_t kCounters = 512;    // a piece of noise
constexpr std::int64_t kSourceFrames = 4;  // a piece of the source

// The frames [first, last) of a row, whose cycles before each frame are `begins`.
void make_frames(const VoiceKernels& kernels, const SourceCall& call, const float* turns, std::int64_t row,
                 const double* begins, std::int64_t first, std::int64_t last) {
  const std::int64_t length = call.frames * call.frame_len;
  SourceFrame frame{};
  frame.turns = call.phases == nullptr ? nullptr : turns + row * call.harmonics;
  frame.weight = call.weight;
  frame.bias = call.bias;
  frame.loud = call.amplitude;
  frame.noise_stride = length;
  frame.harmonics = call.harmonics;
  frame.len = call.frame_len;
  for (std::int64_t t = first; t < last; ++t) {
    const double f0 = call.f0[row * call.frames + t];
    frame.begin = begins[t] - std::floor(begins[t]);
    frame.step = f0 / call.sample_rate;
    frame.is_voiced = f0 > call.voiced_above;
    frame.rough = frame.is_voiced ? call.sigma : call.amplitude / 3;
    const std::int64_t place = t * call.frame_len;
    if (call.noise != nullptr) frame.noise = call.noise + row * call.harmonics * length + place;
    kernels.source_frame(frame, call.y + row * length + place);
  }
}

}  // namespace

void fill_normals(ThreadTeam& team, Isa isa, const std::int64_t* seed, std::int64_t stream,
                  const std::int64_t* first, std::int64_t rows, std::int64_t count, std::int64_t seconds,
                  float* y) {
  const VoiceKernels& kernels = voice_kernels_of(isa);
  const std::int64_t pieces = (count + kCounters - 1) / kCounters;
  team.run([&](Member& me) {
    me.for_each(rows * seconds * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t line = i / pieces, row = line / seconds, from = i % pieces * kCounters;
        kernels.normals(first + row * count + from, std::min(kCounters, count - from),
                        static_cast<std::uint32_t>(line % seconds), static_cast<std::uint32_t>(seed[row]),
                        static_cast<std::uint32_t>(stream), y + 4 * (line * count + from));
      }
    });
  });
}

void stream_source(ThreadTeam& team, Isa isa, const SourceCall& call) {
  const std::int64_t pieces = (call.frames + kSourceFrames - 1) / kSourceFrames;
  const VoiceKernels& kernels = voice_kernels_of(isa);
  std::vector<float> turns;
  if (call.phases != nullptr) {
    turns.assign(call.phases, call.phases + call.rows * call.harmonics);
    for (float& phase : turns) phase /= kTurn;
  }
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
        const std::int64_t row = i / pieces, first = i % pieces * kSourceFrames;
        const std::int64_t last = first + kSourceFrames < call.frames ? first + kSourceFrames : call.frames;
        make_frames(kernels, call, turns.data(), row, begins.data() + row * (call.frames + 1), first, last);
      }
    });
  });
}

}  // namespace innervoice
