// The CPU kernels without Python, for sanitizers: every kind of weight, odd sizes, buffers that end where the
// data ends, teams of several threads. Ends with 0 when results are finite, equal for every number of
// threads, and near those of plain C++.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "innervoice/codebook.h"
#include "innervoice/decoder.h"
#include "innervoice/gemm.h"
#include "innervoice/sample.h"
#include "innervoice/source.h"
#include "innervoice/stream_conv.h"

namespace {

using namespace innervoice;

std::mt19937 generator(1);

// Numbers of a weight, each in a block of memory of its own size.
struct Numbers {
  std::vector<float> floats;
  std::vector<std::uint16_t> halves, scales, minima;
  std::vector<std::int8_t> codes;
  std::vector<std::uint8_t> packed;
  Weight weight;

  Numbers(WeightKind kind, std::int64_t rows, std::int64_t columns, std::int64_t group = 0,
          bool has_minimum = false, bool is_laned = false) {
    std::uniform_real_distribution<float> real(-0.2f, 0.2f);
    weight.kind = kind;
    weight.rows = rows;
    weight.columns = columns;
    weight.group = group;
    weight.is_laned = is_laned;
    if (is_laned) rows = weight.num_panels() * kLaneRows;
    const auto count = static_cast<std::size_t>(rows * columns);
    if (kind == WeightKind::kFloat32) {
      for (std::size_t i = 0; i < count; ++i) floats.push_back(real(generator));
      weight.data = floats.data();
    } else if (kind == WeightKind::kBfloat16) {
      for (std::size_t i = 0; i < count; ++i)
        halves.push_back(static_cast<std::uint16_t>(0x3c00 + generator() % 256));
      weight.data = halves.data();
    } else if (kind == WeightKind::kInt8) {
      const auto bytes = static_cast<std::size_t>(weight.num_bytes());
      for (std::size_t i = 0; i < bytes; ++i)
        codes.push_back(static_cast<std::int8_t>(generator() % 255 - 127));
      floats.assign(static_cast<std::size_t>(rows), 0.002f);
      weight.data = codes.data();
      weight.scale = floats.data();
    } else {
      for (std::int64_t i = 0; i < weight.num_bytes(); ++i)
        packed.push_back(static_cast<std::uint8_t>(generator()));
      const auto groups = static_cast<std::size_t>(rows * weight.num_groups());
      scales.assign(groups, 0x2400);  // 2^-6
      minima.assign(has_minimum ? groups : 0, 0xb000);
      weight.data = packed.data();
      weight.group_scale = scales.data();
      weight.group_minimum = has_minimum ? minima.data() : nullptr;
    }
  }
};

bool near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  float largest = 0.0f, error = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return false;
    largest = std::fmax(largest, std::fabs(b[i]));
    error = std::fmax(error, std::fabs(a[i] - b[i]));
  }
  return error <= tolerance * largest;
}

struct Kind {
  WeightKind kind;
  std::int64_t group;
  bool has_minimum;
  bool is_laned;
};

const Kind kKinds[] = {{WeightKind::kFloat32, 0, false, false}, {WeightKind::kBfloat16, 0, false, false},
                       {WeightKind::kInt8, 0, false, false},    {WeightKind::kInt4, 32, true, false},
                       {WeightKind::kInt4, 64, false, false},   {WeightKind::kInt4, 128, true, false},
                       {WeightKind::kInt8, 0, false, true},     {WeightKind::kInt4, 32, true, true},
                       {WeightKind::kInt4, 64, false, true},    {WeightKind::kInt4, 128, true, true}};

bool check_products(Isa isa) {
  ThreadTeam team(3);
  const std::int64_t sizes[][3] = {{1, 1, 1}, {3, 17, 5}, {7, 65, 257}, {2, 33, 96}, {16, 9, 130}};
  for (const Kind& kind : kKinds) {
    for (const auto& [M, N, K] : sizes) {
      const Numbers w(kind.kind, N, K, kind.group, kind.has_minimum, kind.is_laned);
      std::vector<float> x(static_cast<std::size_t>(M * K)), y(static_cast<std::size_t>(M * N)), z(y);
      for (float& value : x) value = static_cast<float>(generator() % 1000) / 500.0f - 1.0f;
      product(isa, x.data(), K, M, w.weight, y.data(), N);
      gemm(team, isa, x.data(), K, M, w.weight, nullptr, z.data(), N);
      if (!near(y, z, 0.02f)) return std::printf("product of kind %d\n", static_cast<int>(kind.kind)), false;
      product(Isa::kPlain, x.data(), K, M, w.weight, z.data(), N);
      if (kind.is_laned ? y != z : !near(y, z, 0.02f))
        return std::printf("%s is not plain C++'s product\n", name_of(isa)), false;
    }
  }
  return true;
}

struct Model {
  std::vector<std::unique_ptr<Numbers>> kept;
  std::vector<float> ones = std::vector<float>(256, 1.0f);

  Weight weight(const Kind& kind, std::int64_t rows, std::int64_t columns) {
    return kept
        .emplace_back(
            std::make_unique<Numbers>(kind.kind, rows, columns, kind.group, kind.has_minimum, kind.is_laned))
        ->weight;
  }

  DecoderModel make(const Kind& kind) {
    DecoderModel model;
    model.num_heads = 6, model.num_kv_heads = 2, model.head_dim = 10;
    model.norm_eps = 1e-5f;
    model.inv_freq = {1.0f, 0.5f, 0.25f, 0.125f};
    model.embedding = model.output = weight(kKinds[0], 50, 36);
    model.final_norm = ones.data();
    for (int i = 0; i < 2; ++i) {
      DecoderLayer layer;
      layer.attention_norm = layer.ffn_norm = layer.q_norm = layer.k_norm = layer.qkv_bias = ones.data();
      layer.qkv = weight(kind, 100, 36);
      layer.attention_out = weight(kind, 36, 60);
      const std::int64_t experts = i == 0 ? 1 : 5;
      layer.gate_up = weight(kind, experts * 2 * 45, 36);
      layer.down = weight(kind, experts * 36, 45);
      if (i > 0) layer.router = weight(kKinds[0], experts, 36);
      model.layers.push_back(layer);
    }
    model.num_used_experts = 3;
    return model;
  }
};

// Two rows: a prompt in two parts and one of 5 tokens, then steps of a token each; long contexts are cut into
// pieces.
std::vector<float> decode(const DecoderModel& model, Isa isa, int threads, bool is_long) {
  Decoder decoder(model, std::make_shared<ThreadTeam>(threads, false, threads == 2 ? 0 : 20), isa);
  const std::int64_t page_size = 4, num_pages = 280;
  std::vector<float> k(static_cast<std::size_t>(2 * num_pages * page_size * 20)), v(k), logits, all;
  std::vector<std::int32_t> key_tag(static_cast<std::size_t>(num_pages * page_size)), table(2 * 140);
  for (std::int32_t i = 0; i < 280; ++i) table[static_cast<std::size_t>(i)] = (i * 37) % 280;
  std::int32_t lengths[2] = {0, 0};
  for (int step = 0; step < 4; ++step) {
    const std::int32_t counts[2] = {step >= 2 ? 1 : is_long ? 270 : 19, step == 0 ? 5 : 1};
    DecoderBatch batch;
    std::vector<std::int64_t> ids, positions, slots, wanted;
    std::vector<std::int32_t> start = {0}, context, tags;
    std::vector<float> weights;
    for (int row = 0; row < 2; ++row) {
      for (std::int32_t i = 0; i < counts[row]; ++i, ++lengths[row]) {
        ids.push_back((lengths[row] * 7 + row) % 50);
        positions.push_back(lengths[row]);
        slots.push_back(table[static_cast<std::size_t>(row * 140 + lengths[row] / 4)] * 4 + lengths[row] % 4);
        tags.push_back(lengths[row] % 3);
        weights.push_back(0.3f);
      }
      start.push_back(static_cast<std::int32_t>(ids.size()));
      context.push_back(lengths[row]);
      wanted.push_back(static_cast<std::int64_t>(ids.size()) - 1);
    }
    batch.num_tokens = static_cast<std::int64_t>(ids.size());
    batch.num_rows = batch.num_wanted = 2;
    batch.columns = 140;
    batch.ids = ids.data(), batch.positions = positions.data(), batch.slots = slots.data();
    batch.page_table = table.data(), batch.query_start = start.data(), batch.context_len = context.data();
    batch.query_tag = tags.data(), batch.log_weight = weights.data(), batch.wanted = wanted.data();
    const DecoderPages pages = {k.data(), v.data(), false, num_pages, page_size, key_tag.data()};
    logits.assign(100, 0.0f);
    decoder.step(batch, pages, logits.data());
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

bool check_decoder(Isa isa) {
  for (const Kind& kind : kKinds) {
    Model kept;
    const DecoderModel model = kept.make(kind);
    const bool is_long = kind.kind == WeightKind::kFloat32;
    const std::vector<float> one = decode(model, isa, 1, is_long);
    for (const int threads : {2, 3}) {
      if (decode(model, isa, threads, is_long) != one)
        return std::printf("%d threads change the result\n", threads), false;
    }
    if (!near(one, decode(model, Isa::kPlain, 1, is_long), 0.05f))
      return std::printf("%s is far off\n", name_of(isa)), false;
  }
  return true;
}

struct Drawn {
  std::vector<std::int64_t> ids;
  std::vector<float> logprobs;
};

// Greedy, by top k and top p, of everything, of nothing, and with a number that is none.
Drawn draw(int threads) {
  constexpr std::int64_t kVocabulary = 257;
  ThreadTeam team(threads);
  std::vector<float> logits(5 * kVocabulary);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7919) % 1009) / 100.0f;
  logits[4 * kVocabulary + 3] = std::nanf("");
  const std::vector<std::int64_t> offsets = {0, 1, 3, 4, 4, 5};
  const std::vector<std::int64_t> ranges = {0, kVocabulary, 5, 9, 100, 180, 256, 257, 0, 4};
  const std::vector<std::int64_t> top_k = {0, 7, 3, 0, 0},
                                  keys = {1, 0, 0, 2, 5, 0, 3, 6, 1, 4, 7, 0, 5, 8, 0};
  const std::vector<float> temperature = {0.0f, 0.7f, 1.0f, 1.0f, 1.0f};
  const std::vector<double> top_p = {1.0, 0.8, 0.1, 1.0, 1.0};
  Drawn drawn{std::vector<std::int64_t>(5), std::vector<float>(5)};
  const SampleCall call = {logits.data(),        5,
                           kVocabulary,          offsets.data(),
                           ranges.data(),        temperature.data(),
                           top_k.data(),         top_p.data(),
                           keys.data(),          drawn.ids.data(),
                           drawn.logprobs.data()};
  sample(team, call);
  return drawn;
}

bool check_sample() {
  const Drawn one = draw(1), three = draw(3);
  const std::vector<std::int64_t>& ids = one.ids;
  const bool is_offered = (ids[1] >= 5 && ids[1] < 9) || (ids[1] >= 100 && ids[1] < 180);
  if (ids != three.ids || !is_offered || ids[0] < 0 || ids[2] != 256 || ids[3] != -1 || ids[4] != -1)
    return std::printf("ids were drawn wrong\n"), false;
  for (std::size_t row = 0; row < 3; ++row) {
    if (!(one.logprobs[row] <= 0.0f) || one.logprobs[row] != three.logprobs[row])
      return std::printf("a log-probability is wrong\n"), false;
  }
  return true;
}

std::vector<float> sound_source(Isa isa, int threads) {
  constexpr std::int64_t kRows = 2, kFrames = 5, kHarmonics = 3, kLength = 12;
  ThreadTeam team(threads);
  const std::vector<double> f0 = {100, 0, 220.5, 441, 5, 0, 0, 130, 131, 132}, cycles = {0.25, 0.0};
  const std::vector<std::int64_t> n = {5, 3}, seed = {11, -12}, first = {0, 3, 6, 9, 12, 40, 43, 46, 49, 52};
  const std::vector<float> phases = {0, 0.5f, -1, 0, 2, 3}, weight = {0.5f, 0.2f, -0.1f};
  std::vector<float> noise(kRows * kHarmonics * kFrames * kLength), y(kRows * kFrames * kLength);
  std::vector<double> after(kRows);
  fill_normals(team, isa, seed.data(), 7, first.data(), kRows, kFrames, kHarmonics * kLength / 4,
               noise.data());
  const SourceCall call = {f0.data(), cycles.data(), n.data(), phases.data(), noise.data(), weight.data(),
                           0.01f,     0.1f,          0.003f,   22050.0,       10.0,         kRows,
                           kFrames,   kHarmonics,    kLength,  y.data(),      after.data()};
  stream_source(team, isa, call);
  y.insert(y.end(), after.begin(), after.end());
  return y;
}

bool check_source(Isa isa) {
  const std::vector<float> one = sound_source(isa, 1);
  if (one != sound_source(isa, 3)) return std::printf("threads change the source\n"), false;
  return near(one, sound_source(Isa::kPlain, 1), 1e-5f) || (std::printf("the source is wrong\n"), false);
}

template <typename T>
std::vector<T> random_numbers(std::int64_t count) {
  std::uniform_real_distribution<float> real(-1.0f, 1.0f);
  std::vector<T> made(static_cast<std::size_t>(count));
  for (T& x : made) x = static_cast<T>(real(generator));
  return made;
}

// A convolution of `rows` streams, all in memory of its own size: by the native code and as it is written
// down.
template <typename T>
struct Convolution {
  std::int64_t channels, out, taps, stride, up, rows, columns;
  float slope;
  std::int64_t past = (taps - 1) * stride, steps = columns / stride, dilation = 1;
  std::vector<T> weight = random_numbers<T>(out * up * taps * stride * channels),
                 bias = random_numbers<T>(out * up);
  std::vector<T> before = random_numbers<T>(rows * channels * past),
                 x = random_numbers<T>(rows * channels * columns);
  std::vector<std::int64_t> n = std::vector<std::int64_t>(static_cast<std::size_t>(rows), columns - stride);
  std::vector<std::int64_t> start = std::vector<std::int64_t>(static_cast<std::size_t>(rows), -2);
  std::vector<std::int64_t> end = std::vector<std::int64_t>(static_cast<std::size_t>(rows), steps* up - 7);

  std::vector<T> native(Isa isa, int threads) const {
    ThreadTeam team(threads);
    std::vector<T> y(static_cast<std::size_t>(rows * out * steps * up)), after(before.size());
    if constexpr (sizeof(T) == sizeof(double)) {
      const DoubleConv conv(isa, weight.data(), bias, taps, channels, dilation);
      conv.run(team, {before.data(), x.data(), n.data(), start.data(), end.data(), y.data(), after.data(),
                      rows, columns});
    } else {
      const StreamConv conv(isa, weight.data(), bias, taps, stride * channels, {dilation, stride, up, slope});
      conv.run(team, {before.data(), x.data(), n.data(), start.data(), end.data(), y.data(), after.data(),
                      rows, past, columns, 0, steps * up});
    }
    y.insert(y.end(), after.begin(), after.end());
    return y;
  }

  double column(std::int64_t line, std::int64_t t) const {
    return t < past ? before[static_cast<std::size_t>(line * past + t)]
                    : x[static_cast<std::size_t>(line * columns + t - past)];
  }

  std::vector<float> expected() const {
    std::vector<float> y;
    for (std::int64_t line = 0; line < rows * out; ++line) {
      for (std::int64_t t = 0; t < steps * up; ++t) {
        const std::int64_t n_of = line % out * up + t % up;
        double sum = bias[static_cast<std::size_t>(n_of)];
        for (std::int64_t i = 0; i < taps * stride * channels; ++i) {
          const double z = column(line / out * channels + i % channels, t / up * stride + i / channels);
          sum +=
              weight[static_cast<std::size_t>(n_of * taps * stride * channels + i)] * (z > 0 ? z : z * slope);
        }
        y.push_back(t < 2 || t - 2 >= end[0] ? 0.0f : static_cast<float>(sum));
      }
    }
    for (std::int64_t line = 0; line < rows * channels; ++line) {
      for (std::int64_t t = 0; t < past; ++t) y.push_back(static_cast<float>(column(line, n[0] + t)));
    }
    return y;
  }

  bool is_right(Isa isa) const {
    const std::vector<T> one = native(isa, 1);
    if (one != native(isa, 3)) return std::printf("threads change a convolution\n"), false;
    return near({one.begin(), one.end()}, expected(), 2e-6f) ||
           (std::printf("a convolution is wrong\n"), false);
  }
};

bool check_convolutions(Isa isa) {
  return Convolution<float>{5, 3, 7, 1, 1, 2, 301, 0.1f}.is_right(isa) &&
         Convolution<float>{21, 37, 3, 1, 1, 1, 131, 1.0f}.is_right(isa) &&
         Convolution<float>{24, 13, 2, 1, 8, 2, 29, 0.1f}.is_right(isa) &&
         Convolution<float>{9, 20, 2, 8, 1, 1, 248, 1.0f}.is_right(isa) &&
         Convolution<double>{7, 19, 3, 1, 1, 2, 131, 1.0f}.is_right(isa);
}

bool check_codebook(Isa isa) {
  for (const WeightKind kind : {WeightKind::kFloat32, WeightKind::kBfloat16}) {
    const Numbers codes(kind, 3 * 107, 23);
    const std::vector<float> x = random_numbers<float>(9 * 23);
    std::vector<std::int64_t> ids(9), same(9);
    ThreadTeam one(1), three(3);
    nearest_code(one, isa, x.data(), 9, codes.weight, ids.data());
    nearest_code(three, isa, x.data(), 9, codes.weight, same.data());
    if (ids != same) return std::printf("threads change the nearest code\n"), false;
    for (std::int64_t& id : ids) id %= 107;  // of 3 codebooks, for 3 frames
    std::vector<float> sums(3 * 2 * 23), again(sums.size());
    sum_codes(one, isa, ids.data(), 1, 3, codes.weight, 107, {1, 2}, sums.data());
    sum_codes(three, isa, ids.data(), 1, 3, codes.weight, 107, {1, 2}, again.data());
    if (sums != again) return std::printf("threads change the sums of codes\n"), false;
  }
  return true;
}

// Jobs of several callers, one after another; teams that come and go.
bool check_team() {
  ThreadTeam team(4);
  std::vector<std::int64_t> sums(3, 0);
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < sums.size(); ++caller) {
    callers.emplace_back([&team, &sums, caller] {
      for (int job = 0; job < 40; ++job) {
        std::vector<std::int64_t> done(101, 0);
        team.run([&](Member& me) {
          for (int turn = 0; turn < 3; ++turn) {
            me.for_each(101, 7, [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t i = first; i < last; ++i) ++done[static_cast<std::size_t>(i)];
            });
          }
        });
        for (const std::int64_t count : done) sums[caller] += count;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < 20; ++i) ThreadTeam(3, i % 2 == 0, i).run([](Member& me) { me.meet(); });
  for (const std::int64_t sum : sums) {
    if (sum != 40 * 3 * 101) return std::printf("pieces were lost\n"), false;
  }
  return true;
}

}  // namespace

int main() {
  bool is_right = check_team() && check_sample();
  for (const innervoice::Isa isa : {innervoice::Isa::kPlain, innervoice::Isa::kNeon, innervoice::Isa::kAvx2,
                                    innervoice::Isa::kAvxVnni, innervoice::Isa::kAvx512}) {
    if (!innervoice::is_available(isa)) continue;
    is_right = is_right && check_products(isa) && check_decoder(isa) && check_source(isa) &&
               check_convolutions(isa) && check_codebook(isa);
  }
  std::printf(is_right ? "right\n" : "wrong\n");
  return is_right ? 0 : 1;
}
