// How a codec's work is cut, and the memory of a thread that does a piece of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/voice/memory.h"

namespace innervoice {

constexpr std::int64_t kConvItemsOfAThread = 3;  // of a convolution, so that threads end together

// [0, total) in pieces of nearly one size, `most` at most.
struct Pieces {
  std::int64_t total, size, number;

  Pieces(std::int64_t total_, std::int64_t most) : total(total_) {
    const std::int64_t needed = (total + most - 1) / most;
    size = (total + needed - 1) / needed;
    number = (total + size - 1) / size;
  }
  std::int64_t begin(std::int64_t piece) const { return piece * size; }
  std::int64_t count(std::int64_t piece) const { return std::min(size, total - piece * size); }
};

// Floats that take the addresses of a piece's rows.
inline std::int64_t table_floats(std::int64_t taps) {
  return lines(taps * kGathered * (static_cast<std::int64_t>(sizeof(float*)) / 4));
}

// A product with a weight, cut by rows and by columns.
class Items {
 public:
  Items(Isa isa, const PackedWeight& weight, std::int64_t rows, int num_threads)
      : weight_(weight),
        width_(voice_kernels_of(isa).panel_columns),
        rows_(rows, kGathered),
        panels_((weight.columns() + width_ - 1) / width_, panels_of_a_group(num_threads)) {}

  std::int64_t number() const { return rows_.number * panels_.number; }
  const Pieces& rows() const { return rows_; }
  std::int64_t piece(std::int64_t item) const { return item % rows_.number; }
  std::int64_t first(std::int64_t item) const { return panels_.begin(item / rows_.number) * width_; }
  std::int64_t count(std::int64_t item) const {
    return std::min(weight_.columns() - first(item), panels_.count(item / rows_.number) * width_);
  }
  const float* panels(std::int64_t item) const {
    return static_cast<const float*>(weight_.panels()) + first(item) * weight_.taps() * weight_.depth();
  }

 private:
  static constexpr std::int64_t kOfAThread = 3;  // so that threads end together

  std::int64_t panels_of_a_group(int num_threads) const {
    const std::int64_t wanted = (kOfAThread * num_threads + rows_.number - 1) / rows_.number;
    return ((weight_.columns() + width_ - 1) / width_ + wanted - 1) / wanted;
  }

  const PackedWeight& weight_;
  std::int64_t width_;
  Pieces rows_, panels_;
};

// y[m, n] of item i of a product with rows x that lie one behind another.
inline void dense_product(const VoiceKernels& kernels, const Items& items, std::int64_t i,
                          const Affine& layer, const float* x, Finish to, float* y) {
  const std::int64_t depth = layer.weight.depth(), columns = layer.weight.columns(), first = items.first(i);
  const std::int64_t begin = items.rows().begin(items.piece(i)), count = items.rows().count(items.piece(i));
  const float* rows[kGathered];
  for (std::int64_t m = 0; m < count; ++m) rows[m] = x + (begin + m) * depth;
  to.bias = layer.bias.data() + first;
  if (to.scale != nullptr) to.scale += first;
  if (to.add != nullptr) to.add += begin * columns + first;
  to.y = y + begin * columns + first;
  to.y_stride = to.add_stride = columns;
  kernels.gathered_product(rows, count, 1, depth, items.panels(i), items.count(i), to);
}

// The same by a team, all items of it.
inline void team_product(Member& me, const VoiceKernels& kernels, const Items& items, const Affine& layer,
                         const float* x, const Finish& to, float* y) {
  me.for_each(items.number(), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) dense_product(kernels, items, i, layer, x, to, y);
  });
}

// LayerNorm of rows of `channels` by a team.
inline void team_norm(Member& me, const VoiceKernels& kernels, const Norm& norm, float eps, const float* x,
                      std::int64_t rows, std::int64_t channels, float* y) {
  me.for_each(rows, 8, [&](std::int64_t first, std::int64_t last) {
    kernels.floats.layer_norm(x + first * channels, last - first, channels, norm.weight.data(),
                              norm.bias.data(), eps, y + first * channels);
  });
}

}  // namespace innervoice
