// Memory of a call of the voice, cut into pieces that begin at cache lines.
#pragma once

#include <cstdint>

#include "cpu/voice_kernels.h"
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

}  // namespace innervoice
