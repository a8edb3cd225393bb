// Short-time Fourier transforms of streams, and log-mel features, on the CPU: stft.py, istft.py and mel.py
// define them. A frame's numbers depend on neither its neighbours nor the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/voice.h"

namespace innervoice {

// x [rows, columns] behind state [rows, N - hop]; column 0 of x is position start[row] of a signal that is
// reflected at 0 and at its length end[row]. n[row]: columns that a row brings -> y [rows, N + 2, frames],
// frames = columns / hop.
struct StftCall {
  const float *x, *state, *window;
  const std::int64_t *n, *start, *end;
  std::int64_t rows, columns, hop;
  float *y, *state_after;
};

// real, imag [rows, N / 2 + 1, frames], the first at position start[row] of end[row] frames; those from
// n[row] on count for nothing. Column c of y [rows, columns] is sample first + c after the first frame's
// begin; state [rows, N - hop], null: zeros; state_after, null: not wanted. Sums run in the order of frames.
struct IstftCall {
  const float *real, *imag, *state, *window;
  const std::int64_t *n, *start, *end;
  std::int64_t rows, frames, hop, first, columns;
  float *y, *state_after;
};

// samples [rows, columns], filters [N / 2 + 1, mels] -> y [rows, mels, frames], frames = (columns - N) / hop
// + 1: log10(max(|STFT|^2 filters, 1e-10)), the window a periodic Hann.
struct LogMelCall {
  const float *samples, *filters;
  std::int64_t rows, columns, hop, mels;
  float* y;
};

// The transform of N real numbers and back, N even and 4 or more: forth in stages and in double, back as
// a product with a packed table.
class RealTransform {
 public:
  RealTransform(Isa isa, std::int64_t size);

  void stft(ThreadTeam& team, const StftCall& call) const;
  void istft(ThreadTeam& team, const IstftCall& call) const;
  void log_mel(ThreadTeam& team, const LogMelCall& call) const;

  std::int64_t size() const { return size_; }
  std::int64_t bins() const { return size_ / 2 + 1; }

 private:
  struct Stage {
    std::int64_t radix, groups, stride;
    std::vector<double> turns, twiddles;
  };

  template <typename At, typename W>
  void spectra(std::int64_t count, At&& at, const W* window, float* memory) const;
  void samples_of(const IstftCall& call, std::int64_t row, std::int64_t first, std::int64_t count,
                  float* parts, float* y) const;

  Isa isa_;
  std::int64_t size_;
  std::vector<Stage> stages_;
  std::vector<double> turns_;
  PackedWeight back_;
};

}  // namespace innervoice
