// Attention of a group of query heads over a row's pages: keys and values are read where they lie and become
// float32 in registers, for all heads of a query; an online softmax (Milakov and Gimelshein, 2018). Included
// inside a kernel file, behind layer_kernels.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/layer_kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kTileKeys = 64;
constexpr int kKeysAtOnce = 4;
constexpr int kRowsAtOnce = 3;  // heads of a query: their sums of kKeysAtOnce keys stay in registers

inline std::int64_t padded_width(std::int64_t head_dim) {
  return (head_dim + 4 * kLanes - 1) / (4 * kLanes) * (4 * kLanes);
}

inline std::int64_t attend_floats(std::int64_t rows, std::int64_t head_dim) {
  return padded_width(head_dim) * (2 * kTileKeys + 2 * rows) + kRowsAtOnce * kTileKeys;
}

// Two vectors of a key or value, in the order in which they come out of their bytes; place: where in that
// order number d of a head stands.
inline void load_pair(const float* x, Vec& a, Vec& b) {
  a = load(x);
  b = load(x + kLanes);
}
inline void load_pair(const std::uint16_t* x, Vec& a, Vec& b) { load_bf16_pairs(x, a, b); }
inline std::int64_t place(const float*, std::int64_t d) { return d; }
inline std::int64_t place(const std::uint16_t*, std::int64_t d) {
  const std::int64_t in_pair = d % (2 * kLanes);
  return d - in_pair + in_pair / 2 + in_pair % 2 * kLanes;
}

template <typename Number>
struct KeyTile {
  const Number* k[kTileKeys];
  const Number* v[kTileKeys];
  std::int32_t tags[kTileKeys];
};

inline void prefetch_all(const void* x, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) prefetch(static_cast<const char*>(x) + at);
}

// Where positions [first, first + count) lie; heads of another size than whole vectors are copied, with zeros
// behind them, to `room`. Pointers past count, up to kKeysAtOnce, are the last ones again.
template <typename Number>
inline void find_tile(const PagedKeys& keys, std::int64_t first, std::int64_t count, std::int64_t head_dim,
                      std::int64_t width, Number* room, KeyTile<Number>& tile) {
  const auto bytes = static_cast<std::size_t>(head_dim) * sizeof(Number);
  std::int64_t offset = first % keys.page_size;
  const std::int32_t* pages = keys.pages + first / keys.page_size;
  for (std::int64_t j = 0; j < count; ++j, ++offset) {
    if (offset == keys.page_size) {
      offset = 0;
      ++pages;
    }
    const std::int64_t page = *pages;
    const std::int64_t at = page * keys.page_stride + offset * keys.token_stride;
    tile.k[j] = static_cast<const Number*>(keys.k) + at;
    tile.v[j] = static_cast<const Number*>(keys.v) + at;
    if (keys.key_tag != nullptr) tile.tags[j] = keys.key_tag[page * keys.page_size + offset];
    if (head_dim == width) {
      prefetch_all(tile.k[j], bytes);
      prefetch_all(tile.v[j], bytes);
      continue;
    }
    for (const Number** from : {&tile.k[j], &tile.v[j]}) {
      std::memset(room, 0, static_cast<std::size_t>(width) * sizeof(Number));
      std::memcpy(room, *from, bytes);
      *from = room;
      room += width;
    }
  }
  for (std::int64_t j = count; j % kKeysAtOnce != 0; ++j) tile.k[j] = tile.k[count - 1];
}

// scores[r, j] = q[r] k[j] for kR rows; j goes up to a multiple of kKeysAtOnce.
template <int kR, typename Number>
inline void scores_of(const float* q, const Number* const* k, std::int64_t width, std::int64_t count,
                      float* scores) {
  for (std::int64_t j = 0; j < count; j += kKeysAtOnce) {
    Vec total[kR][kKeysAtOnce];
    for (auto& row : total) {
      for (Vec& one : row) one = zero();
    }
    for (std::int64_t d = 0; d < width; d += 2 * kLanes) {
      for (int i = 0; i < kKeysAtOnce; ++i) {
        Vec a, b;
        load_pair(k[j + i] + d, a, b);
        for (int r = 0; r < kR; ++r) {
          total[r][i] = fma(load(q + r * width + d), a, total[r][i]);
          total[r][i] = fma(load(q + r * width + d + kLanes), b, total[r][i]);
        }
      }
    }
    for (int r = 0; r < kR; ++r) store_sums(scores + r * kTileKeys + j, total[r]);
  }
}

// out[r] = out[r] decay[r] + sum_j weights[r, j] v[j]
template <int kR, typename Number>
inline void add_values(const float* weights, const float* decay, const Number* const* v, std::int64_t width,
                       std::int64_t count, float* out) {
  for (std::int64_t d = 0; d < width; d += 4 * kLanes) {
    Vec total[kR][4];
    for (int r = 0; r < kR; ++r) {
      for (int i = 0; i < 4; ++i) total[r][i] = mul(load(out + r * width + d + i * kLanes), set1(decay[r]));
    }
    for (std::int64_t j = 0; j < count; ++j) {
      for (int i = 0; i < 4; i += 2) {
        Vec a, b;
        load_pair(v[j] + d + i * kLanes, a, b);
        for (int r = 0; r < kR; ++r) {
          const Vec weight = set1(weights[r * kTileKeys + j]);
          total[r][i] = fma(weight, a, total[r][i]);
          total[r][i + 1] = fma(weight, b, total[r][i + 1]);
        }
      }
    }
    for (int r = 0; r < kR; ++r) {
      for (int i = 0; i < 4; ++i) store(out + r * width + d + i * kLanes, total[r][i]);
    }
  }
}

// scores[0 .. seen) become exp(score - largest of all so far), the rest up to a vector 0. Returns what the
// sums so far are to be multiplied with.
inline float weigh(float* scores, std::int64_t seen, float& largest, float& total) {
  const std::int64_t whole = (seen + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t j = seen; j < whole; ++j) scores[j] = -INFINITY;
  Vec most_of = set1(largest);
  for (std::int64_t j = 0; j < whole; j += kLanes) most_of = max(load(scores + j), most_of);
  float lanes[kLanes], most = largest;
  store(lanes, most_of);
  for (const float one : lanes) most = one > most ? one : most;
  for (std::int64_t j = 0; j < whole; j += kLanes) store(scores + j, exp(add(load(scores + j), set1(-most))));
  for (std::int64_t j = seen; j < whole; ++j) scores[j] = 0.0f;
  Vec part = zero();
  for (std::int64_t j = 0; j < whole; j += kLanes) part = add(part, load(scores + j));
  const float decay = largest == -INFINITY ? 0.0f : largest == most ? 1.0f : std::exp(largest - most);
  total = total * decay + sum(part);
  largest = most;
  return decay;
}

template <int kR, typename Number>
inline void attend_tile(const Queries& queries, std::int64_t query, const KeyTile<Number>& tile,
                        std::int64_t count, std::int64_t seen, std::int64_t width, const float* q,
                        float* scores, float* largest, float* total, float* sums) {
  scores_of<kR>(q, tile.k, width, count, scores);
  float decay[kR];
  for (int r = 0; r < kR; ++r) {
    float* score = scores + r * kTileKeys;
    if (queries.tag != nullptr && queries.tag[query] != 0) {
      for (std::int64_t j = 0; j < seen; ++j) {
        if (tile.tags[j] == queries.tag[query]) score[j] += queries.log_weight[query];
      }
    }
    decay[r] = weigh(score, seen, largest[r], total[r]);
  }
  add_values<kR>(scores, decay, tile.v, width, seen, sums);
}

template <typename Number>
inline void attend_in(const Queries& queries, const PagedKeys& keys, std::int64_t begin, std::int64_t end,
                      float* out, float* largest, float* total, float* memory) {
  const std::int64_t D = queries.head_dim, width = padded_width(D), rows = queries.count * queries.heads;
  auto* room = reinterpret_cast<Number*>(memory);
  float *q = memory + 2 * kTileKeys * width, *sums = q + rows * width, *scores = sums + rows * width;
  const auto* order = static_cast<const Number*>(nullptr);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* from = queries.q + row / queries.heads * queries.ldq + row % queries.heads * D;
    for (std::int64_t d = 0; d < width; ++d) {
      q[row * width + place(order, d)] = d < D ? from[d] * queries.scale : 0.0f;
      sums[row * width + d] = 0.0f;
    }
    largest[row] = -INFINITY;
    total[row] = 0.0f;
  }
  KeyTile<Number> tile;
  for (std::int64_t first = begin; first < end; first += kTileKeys) {
    const std::int64_t count = end - first < kTileKeys ? end - first : kTileKeys;
    find_tile(keys, first, count, D, width, room, tile);
    for (std::int64_t query = 0; query < queries.count; ++query) {
      const std::int64_t left = queries.position + query + 1 - first, seen = left < count ? left : count;
      if (seen <= 0) continue;
      for (std::int64_t head = 0; head < queries.heads;) {
        const std::int64_t row = query * queries.heads + head, more = queries.heads - head;
        const auto run = [&](auto of) {
          attend_tile<decltype(of)::value>(queries, query, tile, count, seen, width, q + row * width, scores,
                                           largest + row, total + row, sums + row * width);
          head += decltype(of)::value;
        };
        if (more >= kRowsAtOnce && more != kRowsAtOnce + 1) {
          run(std::integral_constant<int, kRowsAtOnce>());
        } else if (more >= 2) {
          run(std::integral_constant<int, 2>());
        } else {
          run(std::integral_constant<int, 1>());
        }
      }
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t d = 0; d < D; ++d) out[row * D + d] = sums[row * width + place(order, d)];
  }
}

inline void attend(const Queries& queries, const PagedKeys& keys, std::int64_t begin, std::int64_t end,
                   float* out, float* largest, float* total, float* memory) {
  if (keys.is_bf16) {
    attend_in<std::uint16_t>(queries, keys, begin, end, out, largest, total, memory);
  } else {
    attend_in<float>(queries, keys, begin, end, out, largest, total, memory);
  }
}

}  // namespace
}  // namespace innervoice
