// Where the keys and values of a ragged batch go in a paged cache.
#pragma once

#include <cstdint>

namespace innervoice {

// Rows as the batch holds them: B rows, N columns in the page table, T query tokens in all.
struct RaggedBatch {
  const std::int32_t* page_table;   // [B, N]
  const std::int32_t* query_start;  // [B + 1]
  const std::int32_t* context_len;  // [B]
  std::int64_t num_rows;            // B
  std::int64_t num_columns;         // N
  std::int64_t num_tokens;          // T
};

// out[t] = page * page_size + offset for every query token t: row b's queries are the last query_start[b + 1]
// - query_start[b] of its context_len[b] positions, and position p lies at offset p % page_size of page
// page_table[b, p / page_size]. Throws std::invalid_argument, having written nothing, when the numbers do not
// fit each other or a needed page is negative.
void fill_slots(const RaggedBatch& batch, std::int64_t page_size, std::int64_t* out);

}  // namespace innervoice
