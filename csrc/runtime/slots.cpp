#include "innervoice/slots.h"

#include <stdexcept>
#include <string>

namespace innervoice {
namespace {

std::string at(const char* name, std::int64_t index, std::int64_t value) {
  return std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(value);
}

void check_starts(const RaggedBatch& batch) {
  const auto* start = batch.query_start;
  if (start[0] != 0) throw std::invalid_argument(at("query_start", 0, start[0]) + ": it must be 0");
  for (std::int64_t row = 0; row < batch.num_rows; ++row) {
    if (start[row + 1] < start[row]) {
      throw std::invalid_argument(at("query_start", row + 1, start[row + 1]) +
                                  ", less than the one before it");
    }
  }
  if (start[batch.num_rows] != batch.num_tokens) {
    throw std::invalid_argument(at("query_start", batch.num_rows, start[batch.num_rows]) + ", but out has " +
                                std::to_string(batch.num_tokens) + " tokens");
  }
}

void check_row(const RaggedBatch& batch, std::int64_t row, std::int64_t page_size) {
  const std::int64_t num_queries = std::int64_t{batch.query_start[row + 1]} - batch.query_start[row];
  const std::int64_t length = batch.context_len[row];
  if (num_queries == 0) return;
  if (length < num_queries) {
    throw std::invalid_argument(at("context_len", row, length) + ", less than the row's " +
                                std::to_string(num_queries) + " query tokens");
  }
  const std::int64_t last = (length - 1) / page_size;
  if (last >= batch.num_columns) {
    throw std::invalid_argument(at("context_len", row, length) + ": it needs " + std::to_string(last + 1) +
                                " pages, page_table has " + std::to_string(batch.num_columns) + " columns");
  }
  for (std::int64_t column = (length - num_queries) / page_size; column <= last; ++column) {
    const std::int32_t page = batch.page_table[row * batch.num_columns + column];
    if (page < 0) {
      throw std::invalid_argument("page_table[" + std::to_string(row) + ", " + std::to_string(column) +
                                  "] is " + std::to_string(page) + ", but the row writes there");
    }
  }
}

}  // namespace

void fill_slots(const RaggedBatch& batch, std::int64_t page_size, std::int64_t* out) {
  if (page_size < 1)
    throw std::invalid_argument("page_size is " + std::to_string(page_size) + ": it must be 1 or more");
  check_starts(batch);
  for (std::int64_t row = 0; row < batch.num_rows; ++row) check_row(batch, row, page_size);
  for (std::int64_t row = 0; row < batch.num_rows; ++row) {
    const std::int32_t* pages = batch.page_table + row * batch.num_columns;
    const std::int64_t first = std::int64_t{batch.context_len[row]} - batch.query_start[row + 1];
    for (std::int64_t token = batch.query_start[row]; token < batch.query_start[row + 1]; ++token) {
      const std::int64_t position = first + token;
      out[token] = pages[position / page_size] * page_size + position % page_size;
    }
  }
}

}  // namespace innervoice
