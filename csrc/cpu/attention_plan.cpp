#include "cpu/attention_plan.h"

#include <algorithm>

namespace innervoice {
namespace {

constexpr std::int64_t kQueries = 8;    // of a piece: they share what is loaded of the keys
constexpr std::int64_t kLongest = 512;  // keys that few queries read in one piece
constexpr std::int64_t kPieceKeys = 256;

}  // namespace

AttentionPlan plan_attention(const DecoderBatch& batch, const DecoderModel& model, std::int64_t begin,
                             std::int64_t end) {
  AttentionPlan plan;
  const std::int64_t heads = model.num_heads / model.num_kv_heads;
  for (std::int64_t row = 0; row < batch.num_rows; ++row) {
    const std::int64_t start = batch.query_start[row], stop = batch.query_start[row + 1];
    const std::int64_t from = std::max(begin, start), to = std::min(end, stop);
    const bool is_cut = stop - start <= kQueries;  // a prefill has pieces enough
    for (std::int64_t first = from; first < to; first += kQueries) {
      const std::int64_t count = std::min(kQueries, to - first),
                         position = batch.context_len[row] - (stop - first);
      const std::int64_t seen = position + count, rows = count * heads;
      const std::int64_t cuts = is_cut && seen > kLongest ? (seen + kPieceKeys - 1) / kPieceKeys : 1;
      plan.most_rows = std::max(plan.most_rows, rows);
      for (std::int64_t group = 0; group < model.num_kv_heads; ++group) {
        AttentionPiece piece = {row, group, first, count, position, 0, seen, -1, 0};
        if (cuts == 1) {
          plan.pieces.push_back(piece);
          continue;
        }
        piece.join = static_cast<std::int64_t>(plan.joins.size());
        plan.joins.push_back({cuts, plan.num_partials});
        for (std::int64_t cut = 0; cut < cuts; ++cut) {
          piece.begin = cut * kPieceKeys;
          piece.end = std::min(seen, piece.begin + kPieceKeys);
          piece.partial = plan.num_partials;
          plan.num_partials += rows;
          plan.pieces.push_back(piece);
        }
      }
    }
  }
  return plan;
}

}  // namespace innervoice
