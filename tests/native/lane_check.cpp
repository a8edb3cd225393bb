// Products of weights in lanes by the kernels of one file, which the macro LANES names: "neon", "avx2" and so
// on. Reads cases from the standard input until it ends, and writes each one's results to the standard output
// as floats. A case: six int64 (rows M of inputs, N, K, group or 0 for int8, whether there are minima, the
// first output that is wanted), the inputs, then codes, scales and minima as they lie in lanes.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/lanes/kernels.h"
#include "cpu/lanes/memory.h"

#define KERNELS_NAMED(name) name##_lane_kernels
#define KERNELS_OF(name) KERNELS_NAMED(name)

namespace {

using namespace innervoice;

// Numbers from the standard input, in memory of exactly their size.
template <typename T>
std::vector<T> numbers(std::int64_t count) {
  std::vector<T> made(static_cast<std::size_t>(count));
  if (std::fread(made.data(), sizeof(T), made.size(), stdin) != made.size()) std::exit(2);
  return made;
}

void run_case(const std::int64_t (&sizes)[6]) {
  const auto [M, N, K, group, has_minimum, first] = sizes;
  Weight w;
  w.kind = group == 0 ? WeightKind::kInt8 : WeightKind::kInt4;
  w.rows = N;
  w.columns = K;
  w.group = group;
  w.is_laned = true;
  const std::vector<float> x = numbers<float>(M * K);
  const std::vector<std::uint8_t> codes = numbers<std::uint8_t>(w.num_bytes());
  const std::int64_t groups = w.num_panels() * kLaneRows * w.num_groups();
  const std::vector<float> scale = numbers<float>(group == 0 ? w.num_panels() * kLaneRows : 0);
  const std::vector<std::uint16_t> scales = numbers<std::uint16_t>(groups),
                                   minima = numbers<std::uint16_t>(has_minimum == 0 ? 0 : groups);
  w.data = codes.data();
  w.scale = scale.data();
  w.group_scale = scales.data();
  w.group_minimum = has_minimum == 0 ? nullptr : minima.data();

  const LaneKernels& kernels = KERNELS_OF(LANES)();
  auto* memory = static_cast<float*>(
      std::aligned_alloc(64, static_cast<std::size_t>(LaneMemory(w, M).floats()) * sizeof(float)));
  const LaneInputs ready = kernels.ready(w, x.data(), K, M, memory, 0, M);
  std::vector<float> y(static_cast<std::size_t>(M * (N - first)));
  kernels.product(w, first, N, ready, M, y.data(), N - first);
  std::free(memory);
  std::fwrite(y.data(), sizeof(float), y.size(), stdout);
}

}  // namespace

int main() {
  std::int64_t sizes[6];
  while (std::fread(sizes, sizeof(sizes), 1, stdin) == 1) run_case(sizes);
  return 0;
}
