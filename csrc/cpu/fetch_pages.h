// Fetches a layer's keys and values while the products before its attention run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "innervoice/decoder.h"

namespace innervoice {

constexpr std::int64_t kFetchedBytes = 512
                                       << 10;  // of a layer, by each thread: half of a common second cache

// Share `piece` of `num_pieces` of the pages that the rows have filled before this step, as far as they fit.
// Attention reads the heads of a group, which lie apart, and waits for memory again and again; all groups of
// a page are a stream. Inlined in any case: a call of a function that does nothing but fetch counts as one
// without an effect, and compilers leave it out.
[[gnu::always_inline]] inline void fetch_pages(const DecoderModel& model, const DecoderBatch& batch,
                                               const DecoderPages& pages, std::size_t layer,
                                               std::int64_t piece, std::int64_t num_pieces, int num_threads) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t number = pages.is_bf16 ? 2 : 4;
  const std::int64_t page_bytes = pages.page_size * model.num_kv_heads * model.head_dim * number;
  const std::int64_t start = static_cast<std::int64_t>(layer) * pages.num_pages * page_bytes;
  std::int64_t left = kFetchedBytes * num_threads / std::max<std::int64_t>(2 * page_bytes, 1);
  for (std::int64_t row = 0; row < batch.num_rows && left > 0; ++row) {
    const std::int64_t queries = batch.query_start[row + 1] - batch.query_start[row];
    if (queries == 0) continue;
    const std::int64_t count = std::min((batch.context_len[row] - queries) / pages.page_size, left);
    const std::int64_t last = count * (piece + 1) / num_pieces;
    for (std::int64_t page = count * piece / num_pieces; page < last; ++page) {
      const std::int64_t at = start + batch.page_table[row * batch.columns + page] * page_bytes;
      for (const void* from : {pages.k, pages.v}) {
        const auto* bytes = static_cast<const unsigned char*>(from) + at;
        for (std::int64_t line = 0; line < page_bytes; line += kLine) __builtin_prefetch(bytes + line);
      }
    }
    left -= count;
  }
}

}  // namespace innervoice
