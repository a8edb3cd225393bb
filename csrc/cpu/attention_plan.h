// Which pieces the attention of a batch is cut into. The cut depends on the batch alone, never on the number
// of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/decoder.h"

namespace innervoice {

// Queries [first, first + count) of the batch, all of one row, in one group of heads, over keys [begin, end).
struct AttentionPiece {
  std::int64_t row;
  std::int64_t group;
  std::int64_t first;
  std::int64_t count;
  std::int64_t position;  // of the first query
  std::int64_t begin;
  std::int64_t end;
  std::int64_t join;     // index into AttentionPlan::joins, or -1: the piece is the whole
  std::int64_t partial;  // where its result goes until it is joined, in vectors of a query and head
};

// The pieces of the same queries and group.
struct AttentionJoin {
  std::int64_t num_pieces;
  std::int64_t partial;  // of the first piece; the others follow
};

struct AttentionPlan {
  std::vector<AttentionPiece> pieces;
  std::vector<AttentionJoin> joins;
  std::int64_t num_partials = 0;
  std::int64_t most_rows = 0;  // queries x heads of a piece
};

// Of tokens [begin, end) of the batch; keys up to each query's own are in the pages when the pieces run.
AttentionPlan plan_attention(const DecoderBatch& batch, const DecoderModel& model, std::int64_t begin,
                             std::int64_t end);

}  // namespace innervoice
