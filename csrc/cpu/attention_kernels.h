// Attention of a group of query heads over a row's pages: tiles of keys and values as float32, an online softmax
// (Milakov and Gimelshein, 2018). Included inside a kernel file, behind layer_kernels.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/layer_kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kTileKeys = 32;
constexpr int kKeysAtOnce = 4;

inline std::int64_t padded_width(std::int64_t head_dim) {
  return (head_dim + 4 * kLanes - 1) / (4 * kLanes) * (4 * kLanes);
}

inline std::int64_t attend_floats(std::int64_t rows, std::int64_t head_dim) {
  return padded_width(head_dim) * (2 * kTileKeys + 2 * rows) + rows * kTileKeys + 64;
}

inline void load_vector(const void* pages, bool is_bf16, std::int64_t place, std::int64_t width, float* y) {
  if (!is_bf16) {
    std::memcpy(y, static_cast<const float*>(pages) + place, static_cast<std::size_t>(width) * sizeof(float));
    return;
  }
  const auto* x = static_cast<const std::uint16_t*>(pages) + place;
  std::int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(y + d, load_bf16(x + d));
  for (; d < width; ++d) y[d] = float_of_bf16(x[d]);
}

// Keys and values of positions [first, first + count) to rows of k and v; rows up to kTileKeys become 0.
inline void load_tile(const PagedKeys& keys, std::int64_t first, std::int64_t count, std::int64_t head_dim,
                      std::int64_t width, float* k, float* v, std::int32_t* tags) {
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t position = first + j, offset = position % keys.page_size;
    const std::int64_t page = keys.pages[position / keys.page_size];
    const std::int64_t place = page * keys.page_stride + offset * keys.token_stride;
    load_vector(keys.k, keys.is_bf16, place, head_dim, k + j * width);
    load_vector(keys.v, keys.is_bf16, place, head_dim, v + j * width);
    for (std::int64_t d = head_dim; d < width; ++d) k[j * width + d] = v[j * width + d] = 0.0f;
    if (keys.key_tag != nullptr) tags[j] = keys.key_tag[page * keys.page_size + offset];
  }
  const std::int64_t rest = (kTileKeys - count) * width;
  for (std::int64_t i = 0; i < rest; ++i) k[count * width + i] = v[count * width + i] = 0.0f;
}

inline void scores_of(const float* q, const float* k, std::int64_t width, std::int64_t count, float* scores) {
  for (std::int64_t j = 0; j < count; j += kKeysAtOnce) {
    Vec total[kKeysAtOnce] = {zero(), zero(), zero(), zero()};
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vec one = load(q + d);
      for (int i = 0; i < kKeysAtOnce; ++i) total[i] = fma(one, load(k + (j + i) * width + d), total[i]);
    }
    store_sums(scores + j, total);
  }
}

// out = out * decay + sum_j weights[j] v[j]
inline void add_values(const float* weights, const float* v, std::int64_t width, std::int64_t count, float decay,
                       float* out) {
  for (std::int64_t d = 0; d < width; d += 4 * kLanes) {
    Vec total[4];
    for (int i = 0; i < 4; ++i) total[i] = mul(load(out + d + i * kLanes), set1(decay));
    for (std::int64_t j = 0; j < count; ++j) {
      const Vec weight = set1(weights[j]);
      for (int i = 0; i < 4; ++i) total[i] = fma(weight, load(v + j * width + d + i * kLanes), total[i]);
    }
    for (int i = 0; i < 4; ++i) store(out + d + i * kLanes, total[i]);
  }
}

inline void attend(const Queries& queries, const PagedKeys& keys, std::int64_t begin, std::int64_t end, float* out,
                   float* largest, float* total, float* memory) {
  const std::int64_t D = queries.head_dim, width = padded_width(D), rows = queries.count * queries.heads;
  float *k = memory, *v = k + kTileKeys * width, *q = v + kTileKeys * width, *sums = q + rows * width;
  float* scores = sums + rows * width;
  std::int32_t tags[kTileKeys];
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* from = queries.q + row / queries.heads * queries.ldq + row % queries.heads * D;
    for (std::int64_t d = 0; d < D; ++d) q[row * width + d] = from[d] * queries.scale;
    for (std::int64_t d = D; d < width; ++d) q[row * width + d] = 0.0f;
    for (std::int64_t d = 0; d < width; ++d) sums[row * width + d] = 0.0f;
    largest[row] = -INFINITY;
    total[row] = 0.0f;
  }
  for (std::int64_t first = begin; first < end; first += kTileKeys) {
    const std::int64_t count = end - first < kTileKeys ? end - first : kTileKeys;
    load_tile(keys, first, count, D, width, k, v, tags);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t query = row / queries.heads;
      std::int64_t seen = queries.position + query + 1 - first;
      seen = seen < count ? seen : count;
      if (seen <= 0) continue;
      float* score = scores + row * kTileKeys;
      scores_of(q + row * width, k, width, count, score);
      if (queries.tag != nullptr && queries.tag[query] != 0) {
        for (std::int64_t j = 0; j < seen; ++j) {
          if (tags[j] == queries.tag[query]) score[j] += queries.log_weight[query];
        }
      }
      float most = largest[row];
      for (std::int64_t j = 0; j < seen; ++j) most = score[j] > most ? score[j] : most;
      for (std::int64_t j = seen; j < kTileKeys; ++j) score[j] = most;
      Vec part = zero();
      for (std::int64_t j = 0; j < kTileKeys; j += kLanes) store(score + j, exp(add(load(score + j), set1(-most))));
      for (std::int64_t j = seen; j < kTileKeys; ++j) score[j] = 0.0f;
      for (std::int64_t j = 0; j < kTileKeys; j += kLanes) part = add(part, load(score + j));
      const float decay = largest[row] == -INFINITY ? 0.0f : std::exp(largest[row] - most);
      total[row] = total[row] * decay + sum(part);
      add_values(score, v, width, seen, decay, sums + row * width);
      largest[row] = most;
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t d = 0; d < D; ++d) out[row * D + d] = sums[row * width + d];
  }
}

}  // namespace
}  // namespace innervoice
