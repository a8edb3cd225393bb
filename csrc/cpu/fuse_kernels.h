// Several rows of logits become one. Included inside a kernel file, behind its vectors and exp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace innervoice {
namespace {

constexpr std::int64_t kFusedBlock = 16 * kLanes;  // ids at a time
constexpr float kImplausible = 1e4f;               // what an implausible id loses

// The largest of x and the sum of exp(x - largest); both NaN where one of x is.
inline void exp_total(const float* x, std::int64_t count, float* largest, double* total) {
  float most = -std::numeric_limits<float>::infinity();
  int broken = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    most = x[i] > most ? x[i] : most;
    broken |= x[i] != x[i];
  }
  *largest = most;
  *total = 0.0;
  if (broken != 0 || std::isinf(most)) {
    *total = most > 0 || broken != 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
    if (broken != 0) *largest = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const Vec shift = set1(-most);
  for (std::int64_t first = 0; first < count; first += kFusedBlock) {
    const std::int64_t end = std::min(first + kFusedBlock, count);
    Vec sums = zero();
    std::int64_t i = first;
    for (; i + kLanes <= end; i += kLanes) sums = add(sums, exp(add(load(x + i), shift)));
    *total += static_cast<double>(sum(sums));
    for (; i < end; ++i) *total += std::exp(static_cast<double>(x[i]) - most);
  }
}

// ln p of the row's ids [first, first + kFusedBlock), 0 past count.
inline void log_softmax(const FusedRows& rows, std::int64_t row, std::int64_t first, std::int64_t count,
                        float* logp) {
  const float *z = rows.logits + row * rows.vocabulary + first, *stats = rows.stats + 2 * row;
  for (std::int64_t i = 0; i < count; ++i) logp[i] = (z[i] - stats[0]) - stats[1];
  std::fill(logp + count, logp + kFusedBlock, 0.0f);
}

// out = ln of the belief that the first row is meant: of beta logp + prior its share among all rows.
inline void believe(const FusedRows& rows, std::int64_t first, std::int64_t count, const float* logp,
                    float* out) {
  float most[kFusedBlock], total[kFusedBlock], other[kFusedBlock];
  const Vec beta = set1(rows.beta);
  for (std::int64_t i = 0; i < kFusedBlock; i += kLanes) {
    store(most + i, fma(beta, load(logp + i), set1(rows.log_prior[0])));
    store(out + i, load(most + i));
    store(total + i, set1(1.0f));
  }
  for (std::int64_t k = 1; k < rows.count; ++k) {
    log_softmax(rows, k, first, count, other);
    for (std::int64_t i = 0; i < kFusedBlock; i += kLanes) {
      const Vec joint = fma(beta, load(other + i), set1(rows.log_prior[k])), before = load(most + i);
      const Vec now = max(joint, before), less = set1(-1.0f);
      store(total + i, fma(load(total + i), exp(fma(less, now, before)), exp(fma(less, now, joint))));
      store(most + i, now);
    }
  }
  for (std::int64_t i = 0; i < count; ++i) out[i] = (out[i] - most[i]) - std::log(total[i]);
}

inline void fuse_block(const FusedRows& rows, std::int64_t first, std::int64_t count, float* out) {
  float logp[kFusedBlock], other[kFusedBlock];
  log_softmax(rows, 0, first, count, logp);
  if (rows.kind == Fusing::kPragmatic) {
    believe(rows, first, count, logp, other);
    for (std::int64_t i = 0; i < count; ++i) out[i] = logp[i] + rows.alpha * other[i];
    return;
  }
  log_softmax(rows, 1, first, count, other);
  if (rows.kind == Fusing::kGuidance) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = other[i] + rows.alpha * (logp[i] - other[i]);
    return;
  }
  const float least = rows.log_alpha - rows.stats[1];
  for (std::int64_t i = 0; i < count; ++i) {
    const float apart = (1.0f + rows.beta) * logp[i] - rows.beta * other[i];
    out[i] = logp[i] >= least ? apart : logp[i] - kImplausible;
  }
}

inline void fuse_rows(const FusedRows& rows, std::int64_t first, std::int64_t last, float* out) {
  bool broken = false;  // a NaN of one row is one of all, which exp would not pass on
  for (std::int64_t k = 0; k < rows.count; ++k) broken |= rows.stats[2 * k] != rows.stats[2 * k];
  if (broken && rows.kind == Fusing::kPragmatic) {
    std::fill(out + first, out + last, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  for (; first < last; first += kFusedBlock) {
    fuse_block(rows, first, std::min(kFusedBlock, last - first), out + first);
  }
}

}  // namespace
}  // namespace innervoice
