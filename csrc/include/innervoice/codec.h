// The convolutions of streaming codecs on the CPU, divided among the threads of a team: float32, time first.
// A stream's past and what it brings are two tensors that are read as one.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "innervoice/thread_team.h"
#include "innervoice/voice.h"

namespace innervoice {

// Columns of rows: before [B, past, K], then x [B, columns, K].
struct Window {
  const float* before;
  const float* x;
  std::int64_t rows, past, columns, depth;

  const float* column(std::int64_t row, std::int64_t t) const {
    return t < past ? before + (row * past + t) * depth : x + (row * columns + t - past) * depth;
  }
};

// y_t = b + sum_j w_j z_{t + d j}, z the columns of a window.
class TapsConv {
 public:
  // weight [N, taps, K], bias [N].
  TapsConv(Isa isa, const float* weight, std::vector<float> bias, std::int64_t taps, std::int64_t depth,
           std::int64_t dilation);

  // -> y [B, past + columns - reach(), N].
  void run(ThreadTeam& team, const Window& window, float* y) const;

  std::int64_t reach() const { return (taps_ - 1) * dilation_; }
  std::int64_t depth() const { return depth_; }
  std::int64_t columns() const { return static_cast<std::int64_t>(bias_.size()); }

 private:
  void find(const Window& window, std::int64_t steps, std::int64_t begin, std::int64_t count,
            const float** table) const;

  Isa isa_;
  std::int64_t taps_, depth_, dilation_;
  std::vector<float> bias_;
  std::optional<PackedWeight> packed_;
  std::vector<float> plain_;  // where there are few columns
};

// A residual unit of SEANet: y_t = s_t + b' + W' elu(b + sum_j w_j elu(z_{t + d j})), s_t the window's column
// that y_t stands at, or a linear map of it.
class EluUnit {
 public:
  EluUnit(Isa isa, Affine wide, Affine narrow, std::optional<Affine> shortcut, std::int64_t dilation)
      : isa_(isa),
        wide_(std::move(wide)),
        narrow_(std::move(narrow)),
        shortcut_(std::move(shortcut)),
        dilation_(dilation) {}

  // -> y [B, past + columns - reach(), K], its ELU where `elu`.
  void run(ThreadTeam& team, const Window& window, bool elu, float* y) const;

  std::int64_t reach() const { return (wide_.weight.taps() - 1) * dilation_; }
  std::int64_t depth() const { return wide_.weight.depth(); }

 private:
  std::int64_t piece_floats(std::int64_t count, std::int64_t steps) const;
  void some(const Window& window, std::int64_t steps, std::int64_t begin, std::int64_t count, bool elu,
            float* y, float* memory, const float** table) const;

  Isa isa_;
  Affine wide_, narrow_;
  std::optional<Affine> shortcut_;
  std::int64_t dilation_;
};

// Where the rows of a call of Mimi's transformer stand: slot and position of the first token, tokens that a
// row brings; cos and sin [B T, d / 2] of all positions. ring [S, 2, R, G, d] as
// innervoice_kernels/residual_vq/windowed.py says.
struct RingCall {
  const std::int64_t *slots, *start, *n;
  const float *cos, *sin;
  float* ring;
  std::int64_t rows, tokens, places;
};

// A layer of Mimi's transformer: y = x + s out(attention(norm x)), y + s' down(gelu(up(norm y))); s, s' of
// columns.
class WindowLayer {
 public:
  struct Parts {
    Norm norm;
    Affine qkv, out;
    std::vector<float> scale;
    Norm norm_ffn;
    Affine up, down;
    std::vector<float> scale_ffn;
  };
  struct Shape {
    std::int64_t heads, groups, window;
    float eps;
  };

  WindowLayer(Isa isa, Parts parts, Shape shape) : isa_(isa), parts_(std::move(parts)), shape_(shape) {}

  // x [B, T, D] -> y [B, T, D]; the ring is written.
  void run(ThreadTeam& team, const RingCall& call, const float* x, float* y) const;

  std::int64_t channels() const { return parts_.qkv.weight.depth(); }
  std::int64_t head_dim() const { return parts_.qkv.weight.columns() / (shape_.heads + 2 * shape_.groups); }
  std::int64_t groups() const { return shape_.groups; }
  std::int64_t window() const { return shape_.window; }

 private:
  void keep(const RingCall& call, std::int64_t m, float* qkv) const;
  void attend(const RingCall& call, std::int64_t m, std::int64_t head, const float* qkv, float* scores,
              float* y) const;

  Isa isa_;
  Parts parts_;
  Shape shape_;
};

// y = x + sin(a x)^2 / (a + 1e-9) of rows of `channels`, a multiple of 16, an a = alpha[c] each.
void snake(ThreadTeam& team, Isa isa, const float* x, std::int64_t rows, std::int64_t channels,
           const float* alpha, float* y);

}  // namespace innervoice
