#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/voice/memory.h"

namespace innervoice {
namespace {

constexpr std::int64_t kGroups = 8;
constexpr float kEps = 1e-5f;

// A call in progress: what the threads share. Elements lie in `x`, `hidden` (with a frame of zeros around
// each row's frames), q, k, v and `attended`; floats in `h`.
struct Job {
  const Numerics numerics;
  const ElementKernels& kernels;
  std::int64_t size;  // bytes of an element
  std::int64_t frames, padded, depth, channels, inner;
  std::vector<Piece> pieces;
  char *x, *hidden, *qkv, *attended;
  float *h, *scale, *shift, *own;
  std::int64_t own_floats;
  std::vector<double> sums;  // [pieces, 2, channels]
};

void add_up(const Job& job, const Piece& p, double* sums) {
  std::fill_n(sums, 2 * job.channels, 0.0);
  const float* x = job.h + (p.row * job.frames + p.first) * job.channels;
  for (std::int64_t t = 0; t < p.count; ++t, x += job.channels) {
    for (std::int64_t c = 0; c < job.channels; ++c) {
      const double value = x[c];
      sums[c] += value;
      sums[job.channels + c] += value * value;
    }
  }
}

// What GroupNorm makes of row's channels: x scale + shift.
void normalise(const Job& job, const Norm& norm, std::int64_t row, std::int64_t n) {
  const std::int64_t width = job.channels / kGroups;
  for (std::int64_t group = 0; group < kGroups; ++group) {
    double total = 0.0, square = 0.0;
    for (std::size_t i = 0; i < job.pieces.size(); ++i) {
      if (job.pieces[i].row != row) continue;
      const double* sums = job.sums.data() + static_cast<std::int64_t>(i) * 2 * job.channels;
      for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
        total += sums[c];
        square += sums[job.channels + c];
      }
    }
    const double count = static_cast<double>(std::max<std::int64_t>(n * width, 1)), mean = total / count;
    const double scale = 1.0 / std::sqrt(std::max(square / count - mean * mean, 0.0) + 1e-5);
    for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
      const auto i = static_cast<std::size_t>(c);
      job.scale[row * job.channels + c] = static_cast<float>(scale * norm.weight[i]);
      job.shift[row * job.channels + c] = static_cast<float>(norm.bias[i] - mean * scale * norm.weight[i]);
    }
  }
}

Finish to_floats(const std::vector<float>& bias, float* y, std::int64_t stride) {
  Finish to;
  to.bias = bias.data();
  to.y = y;
  to.y_stride = stride;
  return to;
}

// A convolution over three frames, with what is added to it, and the sums that its norm needs.
void convolve(Job& job, const Affine& layer, const char* from, std::int64_t depth, const float* added,
              std::int64_t index) {
  const Piece& p = job.pieces[static_cast<std::size_t>(index)];
  float* h = job.h + (p.row * job.frames + p.first) * job.channels;
  Finish to = to_floats(layer.bias, h, job.channels);
  if (added != nullptr) to.add = added + (p.row * job.frames + p.first) * job.channels;
  to.add_stride = job.channels;
  job.kernels.product(from + (p.row * job.padded + p.first) * depth * job.size, depth, p.count, 3, depth,
                      depth, layer.weight.panels(), job.channels, to);
  add_up(job, p, job.sums.data() + index * 2 * job.channels);
}

// LayerNorm and queries, keys, values of a piece of y.
void project(const Job& job, const FlowBlock& block, const Piece& p, const float* y, float* own) {
  const std::int64_t place = p.row * job.frames + p.first;
  job.kernels.layer_norm(y + place * job.channels, p.count, job.channels, block.norm_attention.weight.data(),
                         block.norm_attention.bias.data(), kEps, own);
  Finish to;
  to.elements = job.qkv + place * 3 * job.inner * job.size;
  to.element_stride = 3 * job.inner;
  job.kernels.product(own, job.channels, p.count, 1, 0, job.channels, block.qkv.panels(), 3 * job.inner, to);
}

// What attention gave joins y, then the feed-forward.
void feed_forward(const Job& job, const FlowBlock& block, const Piece& p, float* y, float* own) {
  const std::int64_t place = p.row * job.frames + p.first;
  float* rows = y + place * job.channels;
  Finish to = to_floats(block.out.bias, rows, job.channels);
  to.add = rows;
  to.add_stride = job.channels;
  job.kernels.product(job.attended + place * job.inner * job.size, job.inner, p.count, 1, 0, job.inner,
                      block.out.weight.panels(), job.channels, to);
  job.kernels.layer_norm(rows, p.count, job.channels, block.norm_ffn.weight.data(),
                         block.norm_ffn.bias.data(), kEps, own);
  const std::int64_t width = block.up.weight.columns();
  float* hidden = own + element_floats(job.numerics, kFrames * job.channels);
  Finish up;
  up.bias = block.up.bias.data();
  up.gelu = true;
  up.elements = hidden;
  up.element_stride = width;
  job.kernels.product(own, job.channels, p.count, 1, 0, job.channels, block.up.weight.panels(), width, up);
  Finish down = to_floats(block.down.bias, rows, job.channels);
  down.add = rows;
  down.add_stride = job.channels;
  job.kernels.product(hidden, width, p.count, 1, 0, width, block.down.weight.panels(), job.channels, down);
}

}  // namespace

FlowStage::FlowStage(Numerics numerics, std::int64_t heads, Affine first, Norm first_norm, Affine second,
                     Norm second_norm, Affine skip, std::vector<FlowBlock> blocks)
    : numerics_(numerics),
      heads_(heads),
      first_(std::move(first)),
      second_(std::move(second)),
      skip_(std::move(skip)),
      first_norm_(std::move(first_norm)),
      second_norm_(std::move(second_norm)),
      blocks_(std::move(blocks)) {}

void FlowStage::run(ThreadTeam& team, const float* x, std::int64_t rows, std::int64_t frames,
                    const std::int64_t* n, const float* shift, const float* to_first, const float* to_skip,
                    float* y) const {
  std::int64_t inner = 0, hidden = 0, longest = 0;
  for (const FlowBlock& block : blocks_) {
    inner = std::max(inner, block.qkv.columns() / 3);
    hidden = std::max(hidden, block.up.weight.columns());
  }
  for (std::int64_t row = 0; row < rows; ++row) longest = std::max(longest, n[row]);
  const std::int64_t head = inner / heads_, cells = rows * frames;
  Job job{numerics_,
          element_kernels_of(numerics_),
          element_bytes(numerics_),
          frames,
          frames + 2,
          depth(),
          channels(),
          inner,
          pieces_of(rows, n, kFrames),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          0,
          {}};
  job.own_floats = std::max(
      element_floats(numerics_, kFrames * job.channels) + element_floats(numerics_, kFrames * hidden),
      lines(attend_floats(longest, head)));
  const auto elements = [&](std::int64_t count) { return element_floats(numerics_, count); };
  const std::int64_t sizes[] = {elements(rows * job.padded * job.depth),
                                elements(rows * job.padded * job.channels),
                                elements(cells * 3 * inner),
                                elements(cells * inner),
                                lines(cells * job.channels),
                                lines(rows * job.channels),
                                lines(rows * job.channels)};
  std::int64_t total = job.own_floats * team.num_threads();
  for (const std::int64_t count : sizes) total += count;
  float* memory = kept_memory().floats(total);
  char** parts[] = {&job.x, &job.hidden, &job.qkv, &job.attended};
  float** floats[] = {&job.h, &job.scale, &job.shift};
  for (int i = 0; i < 7; ++i) {
    if (i < 4) {
      *parts[i] = reinterpret_cast<char*>(memory);
    } else {
      *floats[i - 4] = memory;
    }
    memory += sizes[i];
  }
  job.own = memory;
  job.sums.resize(job.pieces.size() * 2 * static_cast<std::size_t>(job.channels));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (const std::int64_t frame : {std::int64_t{0}, n[row] + 1}) {  // zeros before and after
      std::memset(job.x + (row * job.padded + frame) * job.depth * job.size, 0,
                  static_cast<std::size_t>(job.depth * job.size));
      std::memset(job.hidden + (row * job.padded + frame) * job.channels * job.size, 0,
                  static_cast<std::size_t>(job.channels * job.size));
    }
    std::fill_n(y + (row * frames + n[row]) * job.channels, (frames - n[row]) * job.channels, 0.0f);
  }
  const auto add_norm_mish = voice_kernels_of(numerics_.isa).add_norm_mish;
  const auto count = static_cast<std::int64_t>(job.pieces.size());
  team.run([&](Member& me) {
    float* own = job.own + me.index() * job.own_floats;
    const auto each_piece = [&](auto&& body) {
      me.for_each(count, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) body(i, job.pieces[static_cast<std::size_t>(i)]);
      });
    };
    const auto each_row = [&](const Norm& norm) {
      me.for_each(rows, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) normalise(job, norm, row, n[row]);
      });
    };
    each_piece([&](std::int64_t, const Piece& p) {
      job.kernels.narrow(x + (p.row * frames + p.first) * job.depth, p.count * job.depth,
                         job.x + (p.row * job.padded + p.first + 1) * job.depth * job.size);
    });
    each_piece([&](std::int64_t i, const Piece&) { convolve(job, first_, job.x, job.depth, to_first, i); });
    each_row(first_norm_);
    each_piece([&](std::int64_t, const Piece& p) {
      job.kernels.norm_mish(job.h + (p.row * frames + p.first) * job.channels, p.count, job.channels,
                            job.scale + p.row * job.channels, job.shift + p.row * job.channels, shift,
                            job.hidden + (p.row * job.padded + p.first + 1) * job.channels * job.size);
    });
    each_piece(
        [&](std::int64_t i, const Piece&) { convolve(job, second_, job.hidden, job.channels, nullptr, i); });
    each_row(second_norm_);
    each_piece([&](std::int64_t, const Piece& p) {
      const std::int64_t place = p.row * frames + p.first;
      Finish to = to_floats(skip_.bias, y + place * job.channels, job.channels);
      if (to_skip != nullptr) to.add = to_skip + place * job.channels;
      to.add_stride = job.channels;
      job.kernels.product(job.x + (p.row * job.padded + p.first + 1) * job.depth * job.size, job.depth,
                          p.count, 1, 0, job.depth, skip_.weight.panels(), job.channels, to);
      add_norm_mish(job.h + place * job.channels, p.count, job.channels, job.scale + p.row * job.channels,
                    job.shift + p.row * job.channels, y + place * job.channels);
      if (!blocks_.empty()) project(job, blocks_[0], p, y, own);
    });
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      me.for_each(rows * heads_, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
          const std::int64_t row = i / heads_, place = row * frames, column = i % heads_ * head;
          const char* q = job.qkv + (place * 3 * inner + column) * job.size;
          job.kernels.attend(q, q + inner * job.size, q + 2 * inner * job.size, 3 * inner, n[row], head,
                             job.attended + (place * inner + column) * job.size, inner, own);
        }
      });
      each_piece([&](std::int64_t, const Piece& p) {
        feed_forward(job, blocks_[b], p, y, own);
        if (b + 1 < blocks_.size()) project(job, blocks_[b + 1], p, y, own);
      });
    }
  });
}

}  // namespace innervoice
