// Noise by absolute place, and the vocoder's source, on the CPU: noise.py and source.py define them.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"

namespace innervoice {

// y[b, s, f, 0..3]: the normals of counter (first[b, f], s) and key (seed[b], stream); first [rows, count].
void fill_normals(ThreadTeam& team, Isa isa, const std::int64_t* seed, std::int64_t stream,
                  const std::int64_t* first, std::int64_t rows, std::int64_t count, std::int64_t seconds,
                  float* y);

// A call of the source. f0 [rows, frames] in Hz; cycles [rows] before and after n[row] frames; phases [rows,
// harmonics] and noise [rows, harmonics, frames * frame_len], null: none; weight [harmonics]; y [rows, frames
// * frame_len].
struct SourceCall {
  const double *f0, *cycles;
  const std::int64_t* n;
  const float *phases, *noise, *weight;
  float bias, amplitude, sigma;
  double sample_rate, voiced_above;
  std::int64_t rows, frames, harmonics, frame_len;
  float* y;
  double* cycles_after;
};

void stream_source(ThreadTeam& team, Isa isa, const SourceCall& call);

}  // namespace innervoice
