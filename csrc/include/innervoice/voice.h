// The speech decoder's networks on the CPU: what a residual block with its transformers, a convolution over
// frames and a unit of the vocoder compute, divided among the threads of a team. Frames lie one after
// another, channels last.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"

namespace innervoice {

// A weight [N, taps, K] in the order in which a product reads it: panels of columns, depth within. Products
// take in floats, or bfloat16 (halves) and add up in floats. Throws std::invalid_argument for halves without
// AVX-512 or of odd K.
class PackedWeight {
 public:
  PackedWeight(Isa isa, bool halves, const float* w, std::int64_t columns, std::int64_t taps,
               std::int64_t depth);

  std::int64_t columns() const { return columns_; }
  std::int64_t taps() const { return taps_; }
  std::int64_t depth() const { return depth_; }
  const void* panels() const { return memory_.data() + offset_; }

 private:
  std::int64_t columns_, taps_, depth_;
  std::size_t offset_;
  std::vector<float> memory_;
};

// How a network's products run.
struct Numerics {
  Isa isa;
  bool halves;
};

// A weight with its bias, and a norm's.
struct Affine {
  PackedWeight weight;
  std::vector<float> bias;
};
struct Norm {
  std::vector<float> weight, bias;
};

// y[t] = b + sum_j w_j x[t stride + j - pad] over the frames of each row.
class FrameConv {
 public:
  FrameConv(Numerics numerics, Affine layer) : numerics_(numerics), layer_(std::move(layer)) {}

  // x [R, T, K] with n[r] true frames, the others counting as zero -> y [R, T', N], zero from out_n[r] on.
  void run(ThreadTeam& team, const float* x, std::int64_t rows, std::int64_t frames, const std::int64_t* n,
           std::int64_t stride, std::int64_t pad, float* y, std::int64_t out_frames,
           const std::int64_t* out_n) const;

  std::int64_t depth() const { return layer_.weight.depth(); }
  std::int64_t columns() const { return layer_.weight.columns(); }

 private:
  Numerics numerics_;
  Affine layer_;
};

// Rows of channels, x [rows, channels, columns] of which n[row] columns count: GroupNorm over them, then
// Mish, as innervoice_kernels/speech_codec/groupnorm.py says -> y, zero from n[row] on.
struct GroupNormCall {
  const float* x;
  const std::int64_t* n;
  const float *weight, *bias;
  std::int64_t rows, channels, columns, groups;
  float eps;
  float* y;
};
void group_norm_mish(ThreadTeam& team, Isa isa, const GroupNormCall& call);

// A transformer of the flow: LayerNorm, attention of all frames of a row, LayerNorm, GELU feed-forward. The
// scale of its scores, 1 / sqrt(d), is in the weights of the queries.
struct FlowBlock {
  Norm norm_attention;
  PackedWeight qkv;
  Affine out;
  Norm norm_ffn;
  Affine up, down;
};

// A stage of the flow's U-Net: residual block (two convolutions, GroupNorm of 8 groups over true lengths,
// Mish), then transformers.
class FlowStage {
 public:
  FlowStage(Numerics numerics, std::int64_t heads, Affine first, Norm first_norm, Affine second,
            Norm second_norm, Affine skip, std::vector<FlowBlock> blocks);

  // x [R, T, K] with n[r] true frames, shift [C]: what the time adds; to_first, to_skip [R, T, C]: what is
  // added to the first convolution and to the skip, null: nothing -> y [R, T, C], zero from n[r] on.
  void run(ThreadTeam& team, const float* x, std::int64_t rows, std::int64_t frames, const std::int64_t* n,
           const float* shift, const float* to_first, const float* to_skip, float* y) const;

  std::int64_t depth() const { return first_.weight.depth(); }
  std::int64_t channels() const { return first_.weight.columns(); }

 private:
  Numerics numerics_;
  std::int64_t heads_;
  Affine first_, second_, skip_;
  Norm first_norm_, second_norm_;
  std::vector<FlowBlock> blocks_;
};

// Rows of a stream of the vocoder, channels first: x [B, C, T], its past [B, C, 2 h d] and [B, C, 2 h], as
// innervoice_kernels/speech_codec/residual.py says. start, end: bounds, null where nothing is clipped.
struct ResidualCall {
  const float* x;
  const float* history;
  const float* inner;
  const std::int64_t* n;
  const std::int64_t* start;
  const std::int64_t* end;
  float* y;
  float* history_after;
  float* inner_after;
  std::int64_t rows, channels, columns;
};

// A residual unit of the vocoder: y = x + conv(snake(conv_d(snake(x)))).
class ResidualUnit {
 public:
  virtual ~ResidualUnit() = default;
  virtual void run(ThreadTeam& team, const ResidualCall& call) const = 0;
  virtual bool takes(std::int64_t channels) const = 0;
  virtual std::int64_t half() const = 0;
  virtual std::int64_t dilation() const = 0;
};

// By the products' panels: weights are padded to a multiple of 16 channels.
class PanelUnit : public ResidualUnit {
 public:
  PanelUnit(Numerics numerics, std::vector<float> alpha, Affine first, std::vector<float> beta, Affine second,
            std::int64_t dilation);

  void run(ThreadTeam& team, const ResidualCall& call) const override;

  bool takes(std::int64_t channels) const override {
    return channels <= padded_channels() && padded_channels() < channels + 16;
  }
  std::int64_t half() const override { return first_.weight.taps() / 2; }
  std::int64_t dilation() const override { return dilation_; }

 private:
  std::int64_t padded_channels() const { return first_.weight.depth(); }
  void piece(const ResidualCall& call, std::int64_t row, std::int64_t begin, std::int64_t count,
             float* memory) const;
  std::int64_t piece_floats(std::int64_t count) const;

  Numerics numerics_;
  std::vector<float> alpha_, beta_;
  Affine first_, second_;
  std::int64_t dilation_;
};

// Of few channels in floats: vectors run along the time, and weights are padded to a multiple of 4 channels.
class WaveUnit : public ResidualUnit {
 public:
  // first, second: [C, taps, C].
  WaveUnit(Isa isa, std::int64_t channels, std::int64_t taps, std::int64_t dilation, std::vector<float> alpha,
           const float* first, std::vector<float> first_bias, std::vector<float> beta, const float* second,
           std::vector<float> second_bias);

  void run(ThreadTeam& team, const ResidualCall& call) const override;

  bool takes(std::int64_t channels) const override {
    return channels <= channels_ && channels_ < channels + 4;
  }
  std::int64_t half() const override { return taps_ / 2; }
  std::int64_t dilation() const override { return dilation_; }

 private:
  void piece(const ResidualCall& call, std::int64_t row, std::int64_t begin, std::int64_t count,
             float* memory) const;
  std::int64_t stride() const;

  Isa isa_;
  std::int64_t channels_, taps_, dilation_;
  std::vector<float> alpha_, first_bias_, beta_, second_bias_, first_, second_;
};

}  // namespace innervoice
