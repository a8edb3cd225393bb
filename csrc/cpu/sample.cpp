#include "innervoice/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "innervoice/philox.h"

namespace innervoice {
namespace {

// The largest Gumbel noise that 23 bits give, -ln(-ln(1 - 2^-24)), rounded up.
constexpr float kMostNoise = 16.65f;

struct Candidate {
  float value;
  std::int64_t id;

  // Comes before: the larger one, of equals the smaller id.
  bool before(const Candidate& other) const {
    return value > other.value || (value == other.value && id < other.id);
  }
};

float gumbel(const std::int64_t* key, std::int64_t id) {
  const auto seed = static_cast<std::uint64_t>(key[0]);
  const PhiloxWords words = philox(static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(key[1]),
                                   static_cast<std::uint32_t>(key[2]), 0, static_cast<std::uint32_t>(seed),
                                   static_cast<std::uint32_t>(seed >> 32));
  return -std::log(-std::log(uniform_of(words.w[0])));
}

// Of candidates in any order, those that the k-th largest or an equal of it is among.
void keep_top_k(std::vector<Candidate>& kept, std::int64_t k) {
  if (k == 0 || k >= static_cast<std::int64_t>(kept.size())) return;
  std::vector<float> values(kept.size());
  std::transform(kept.begin(), kept.end(), values.begin(), [](const Candidate& one) { return one.value; });
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  const float least = values[static_cast<std::size_t>(k - 1)];
  kept.erase(
      std::remove_if(kept.begin(), kept.end(), [least](const Candidate& one) { return one.value < least; }),
      kept.end());
}

// The most probable ones until their sum reaches top_p, at least one.
void keep_top_p(std::vector<Candidate>& kept, double top_p) {
  if (top_p >= 1.0) return;
  float most = kept.front().value;
  for (const Candidate& one : kept) most = std::max(most, one.value);
  double total = 0.0, sum = 0.0;
  for (const Candidate& one : kept) total += std::exp(one.value - most);
  const auto after = [](const Candidate& a, const Candidate& b) { return b.before(a); };
  std::make_heap(kept.begin(), kept.end(), after);
  auto end = kept.end();  // what was popped lies behind it
  do {
    std::pop_heap(kept.begin(), end, after);
    --end;
    sum += std::exp(end->value - most) / total;
  } while (end != kept.begin() && sum < top_p);
  kept.erase(kept.begin(), end);
}

// The largest sum of value and noise; noise is drawn only where it can still matter.
std::int64_t draw(const std::vector<Candidate>& kept, const std::int64_t* key) {
  const Candidate* first = &kept.front();
  for (const Candidate& one : kept) first = one.before(*first) ? &one : first;
  Candidate best{first->value + gumbel(key, first->id), first->id};
  for (const Candidate& one : kept) {
    if (one.value + kMostNoise < best.value || &one == first) continue;
    const Candidate other{one.value + gumbel(key, one.id), one.id};
    if (other.before(best)) best = other;
  }
  return best.id;
}

void draw_row(const SampleCall& call, std::int64_t row, std::vector<Candidate>& kept) {
  const float* z = call.logits + row * call.vocabulary;
  call.ids[row] = -1;
  call.logprobs[row] = std::numeric_limits<float>::quiet_NaN();
  Candidate best{-std::numeric_limits<float>::infinity(), -1};
  bool is_number = true;
  const auto for_each = [&](auto&& body) {
    for (std::int64_t i = call.offsets[row]; i < call.offsets[row + 1]; ++i) {
      for (std::int64_t id = call.ranges[2 * i]; id < call.ranges[2 * i + 1]; ++id) body(id, z[id]);
    }
  };
  for_each([&](std::int64_t id, float value) {
    is_number = is_number && value == value;
    if (value > best.value) best = {value, id};
  });
  if (!is_number || best.id < 0 || !std::isfinite(best.value)) return;
  double total = 0.0;
  for_each([&](std::int64_t, float value) { total += std::exp(value - best.value); });
  const float temperature = call.temperature[row];
  std::int64_t id = best.id;
  if (temperature > 0) {
    kept.clear();
    for_each([&](std::int64_t i, float value) { kept.push_back({value / temperature, i}); });
    keep_top_k(kept, call.top_k[row]);
    keep_top_p(kept, call.top_p[row]);
    id = draw(kept, call.keys + 3 * row);
  }
  call.ids[row] = id;
  call.logprobs[row] = static_cast<float>(static_cast<double>(z[id] - best.value) - std::log(total));
}

}  // namespace

void sample(ThreadTeam& team, const SampleCall& call) {
  team.run([&](Member& me) {
    std::vector<Candidate> kept;
    me.for_each(call.rows, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) draw_row(call, row, kept);
    });
  });
}

}  // namespace innervoice
