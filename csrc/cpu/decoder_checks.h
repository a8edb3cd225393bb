// Whether a decoder's model and a batch for it hold together: std::invalid_argument says what does not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "innervoice/decoder.h"

namespace innervoice {

inline void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

inline std::string shape_of(const Weight& w) {
  return "[" + std::to_string(w.rows) + ", " + std::to_string(w.columns) + "]";
}

inline void check_shape(const char* name, const Weight& w, std::int64_t rows, std::int64_t columns) {
  check(w.rows == rows && w.columns == columns, std::string(name) + ": expected [" + std::to_string(rows) +
                                                    ", " + std::to_string(columns) + "], got " + shape_of(w));
}

inline void check_model(const DecoderModel& model) {
  const std::int64_t D = model.embedding.columns, H = model.num_heads, G = model.num_kv_heads,
                     size = model.head_dim;
  check(H > 0 && G > 0 && size > 0 && H % G == 0 && !model.layers.empty(),
        "a decoder has heads in equal groups and layers: got " + std::to_string(H) + " heads, " +
            std::to_string(G) + " groups, " + std::to_string(model.layers.size()) + " layers");
  check(2 * static_cast<std::int64_t>(model.inv_freq.size()) <= size,
        "more dimensions are rotated than a head has");
  for (const DecoderLayer& layer : model.layers) {
    check_shape("qkv", layer.qkv, (H + 2 * G) * size, D);
    check_shape("attention_out", layer.attention_out, D, H * size);
    const std::int64_t E = std::max<std::int64_t>(layer.router.rows, 1);
    check_shape("gate_up", layer.gate_up, 2 * E * layer.down.columns, D);
    check_shape("down", layer.down, E * D, layer.down.columns);
    if (layer.router.rows == 0) continue;
    check_shape("router", layer.router, E, D);
    check(0 < model.num_used_experts && model.num_used_experts <= E,
          "a token uses " + std::to_string(model.num_used_experts) + " of " + std::to_string(E) + " experts");
  }
  check_shape("output", model.output, model.embedding.rows, D);
}

// Before any of it is read: ids, slots, pages, wanted tokens and outputs are in their ranges.
inline void check_batch(const DecoderModel& model, const DecoderBatch& batch, const DecoderPages& pages) {
  const std::int64_t V = model.embedding.rows, places = pages.num_pages * pages.page_size;
  for (std::int64_t t = 0; t < batch.num_tokens; ++t) {
    check(batch.ids[t] >= 0 && batch.ids[t] < V, "ids[" + std::to_string(t) + "] is " +
                                                     std::to_string(batch.ids[t]) + ": the vocabulary has " +
                                                     std::to_string(V));
    check(batch.slots[t] < places, "slots[" + std::to_string(t) + "] is " + std::to_string(batch.slots[t]) +
                                       ": the pages hold " + std::to_string(places) + " tokens");
  }
  check(batch.query_start[0] == 0 && batch.query_start[batch.num_rows] == batch.num_tokens,
        "query_start must lead from 0 to the number of tokens");
  for (std::int64_t row = 0; row < batch.num_rows; ++row) {
    const std::int64_t queries = batch.query_start[row + 1] - batch.query_start[row],
                       context = batch.context_len[row];
    check(queries >= 0 && queries <= context && context <= batch.columns * pages.page_size,
          "row " + std::to_string(row) + " has " + std::to_string(queries) + " queries of " +
              std::to_string(context) + " tokens, and pages for " +
              std::to_string(batch.columns * pages.page_size));
    for (std::int64_t i = 0; queries > 0 && i * pages.page_size < context; ++i) {
      const std::int64_t page = batch.page_table[row * batch.columns + i];
      check(page >= 0 && page < pages.num_pages, "row " + std::to_string(row) + " holds page " +
                                                     std::to_string(page) + " of " +
                                                     std::to_string(pages.num_pages));
    }
  }
  for (std::int64_t i = 0; i < batch.num_wanted; ++i) {
    check(batch.wanted[i] >= 0 && batch.wanted[i] < batch.num_tokens &&
              (i == 0 || batch.wanted[i - 1] < batch.wanted[i]),
          "wanted tokens must ascend and be in the batch");
  }
  for (std::int64_t i = 0, end = 0; i < batch.num_outputs; ++i) {
    const std::int64_t first = batch.outputs[2 * i], last = batch.outputs[2 * i + 1];
    check(end <= first && first <= last && last <= model.output.rows,
          "outputs must be ascending ranges of ids below " + std::to_string(model.output.rows) + ", not " +
              std::to_string(first) + " to " + std::to_string(last));
    end = last;
  }
}

}  // namespace innervoice
