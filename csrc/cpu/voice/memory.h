// Memory of a call of the voice, cut into pieces that begin at cache lines.
#pragma once

#include <cstdint>

#include "cpu/voice/kernels.h"
#include "innervoice/gemm.h"
#include "innervoice/voice.h"

namespace innervoice {

inline std::int64_t lines(std::int64_t floats) { return (floats + 15) / 16 * 16; }

inline std::int64_t element_bytes(const Numerics& numerics) { return numerics.halves ? 2 : 4; }

// Floats that so many elements take.
inline std::int64_t element_floats(const Numerics& numerics, std::int64_t count) {
  return lines((count * element_bytes(numerics) + 3) / 4);
}

inline const ElementKernels& element_kernels_of(const Numerics& numerics) {
  const VoiceKernels& kernels = voice_kernels_of(numerics.isa);
  return numerics.halves ? kernels.halves : kernels.floats;
}

// What the calling thread keeps between calls, so that memory is not asked for each time.
inline Scratch& kept_memory() {
  static thread_local Scratch memory;
  return memory;
}

// Frames of a row that are worked on together: whole tiles of any instructions.
constexpr std::int64_t kFrames = 48;

struct Piece {
  std::int64_t row, first, count;
};

inline std::vector<Piece> pieces_of(std::int64_t rows, const std::int64_t* n, std::int64_t size) {
  std::vector<Piece> pieces;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t first = 0; first < n[row]; first += size) {
      pieces.push_back({row, first, first + size < n[row] ? size : n[row] - first});
    }
  }
  return pieces;
}

// What a row of a residual unit leaves of its past, and of `inner` where the new columns did not reach that
// far.
inline void keep_past(const ResidualCall& call, std::int64_t row, std::int64_t reach, std::int64_t inner) {
  const std::int64_t n = call.n[row];
  for (std::int64_t c = row * call.channels; c < (row + 1) * call.channels; ++c) {
    const float *old = call.history + c * reach, *x = call.x + c * call.columns;
    for (std::int64_t i = 0; i < reach; ++i) {
      call.history_after[c * reach + i] = n + i < reach ? old[n + i] : x[n + i - reach];
    }
    for (std::int64_t i = 0; n + i < inner && i < inner; ++i) {
      call.inner_after[c * inner + i] = call.inner[c * inner + n + i];
    }
  }
}

}  // namespace innervoice
