// The vocoder's convolutions over a stream, channels first, divided among the threads of a team: those that
// change the rate or the number of channels. A leaky ReLU goes before them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "innervoice/thread_team.h"
#include "innervoice/voice.h"

namespace innervoice {

// Rows of a call: z = before ++ x ++ zeros. y begins at column `first` of the result; start, end: y's bounds,
// null where nothing is clipped. n: columns of x that count, after [B, C, past] what is kept of them, null:
// nothing.
struct StreamConvCall {
  const float* before;
  const float* x;
  const std::int64_t *n, *start, *end;
  float *y, *after;
  std::int64_t rows, past, columns, first, out_columns;
};

// y_{u t + v}[c] = b[c u + v] + sum_j,i,k w[c u + v, j, i C + k] leaky(z_{s (t + d j) + i}[k]), stride s,
// dilation d, u outputs a step.
class StreamConv {
 public:
  struct Shape {
    std::int64_t dilation, stride, up;
    float slope;  // of the leaky ReLU; 1: none
  };

  // weight [C' u, taps, s C], bias [C' u].
  StreamConv(Isa isa, const float* weight, std::vector<float> bias, std::int64_t taps, std::int64_t depth,
             Shape shape);

  void run(ThreadTeam& team, const StreamConvCall& call) const;

  std::int64_t channels() const { return depth_ / shape_.stride; }
  std::int64_t out_channels() const { return columns_ / shape_.up; }

 private:
  struct Piece {
    std::int64_t row, begin, count;  // steps
  };

  std::int64_t reach() const { return (taps_ - 1) * shape_.dilation; }
  void signals(const StreamConvCall& call, Piece piece, float* memory) const;
  void panels(const StreamConvCall& call, Piece piece, std::int64_t first, std::int64_t count,
              float* memory) const;
  void run_signals(ThreadTeam& team, const StreamConvCall& call) const;
  void run_panels(ThreadTeam& team, const StreamConvCall& call) const;

  Isa isa_;
  std::int64_t taps_, depth_, columns_;
  Shape shape_;
  std::vector<float> bias_;
  std::optional<PackedWeight> packed_;
  std::vector<float> grouped_;  // where there are few outputs: vectors run along the time
};

// Rows of a call in double, z = before ++ x: before, after [B, C, reach], y [B, C', columns]; the rest as
// above.
struct DoubleConvCall {
  const double* before;
  const double* x;
  const std::int64_t *n, *start, *end;
  double *y, *after;
  std::int64_t rows, columns;
};

// y_t[c] = b[c] + sum_j,k w[c, j, k] z_{t + d j}[k] in double.
class DoubleConv {
 public:
  // weight [C', taps, C], bias [C'].
  DoubleConv(Isa isa, const double* weight, std::vector<double> bias, std::int64_t taps, std::int64_t depth,
             std::int64_t dilation);

  void run(ThreadTeam& team, const DoubleConvCall& call) const;

  std::int64_t channels() const { return depth_; }
  std::int64_t out_channels() const { return columns_; }
  std::int64_t reach() const { return (taps_ - 1) * dilation_; }

 private:
  void piece(const DoubleConvCall& call, std::int64_t row, std::int64_t begin, std::int64_t columns,
             std::int64_t first, std::int64_t count, double* memory) const;

  Isa isa_;
  std::int64_t taps_, depth_, columns_, dilation_;
  std::vector<double> bias_, panels_;  // panels of columns, depth within, zeros behind the last column
};

}  // namespace innervoice
