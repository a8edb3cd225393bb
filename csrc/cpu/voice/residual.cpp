#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/voice/memory.h"
#include "cpu/voice/rows.h"

namespace innervoice {
namespace {

constexpr std::int64_t kColumns = 192;  // of a stream that are worked on together

// Zeros the rows whose position, from `position` on, is outside [0, end).
void clip_rows(float* rows, std::int64_t count, std::int64_t stride, std::int64_t position,
               std::int64_t end) {
  for (std::int64_t t = 0; t < count; ++t) {
    if (position + t < 0 || position + t >= end) std::fill_n(rows + t * stride, stride, 0.0f);
  }
}

}  // namespace

PanelUnit::PanelUnit(Numerics numerics, std::vector<float> alpha, Affine first, std::vector<float> beta,
                     Affine second, std::int64_t dilation)
    : numerics_(numerics),
      alpha_(std::move(alpha)),
      beta_(std::move(beta)),
      first_(std::move(first)),
      second_(std::move(second)),
      dilation_(dilation) {}

std::int64_t PanelUnit::piece_floats(std::int64_t count) const {
  const std::int64_t width = padded_channels(), middle = count + 2 * half(),
                     past = middle + 2 * half() * dilation_;
  return lines(past * width) + lines(middle * width) + lines(count * width) +
         element_floats(numerics_, past * width);
}

// Columns begin ... begin + count - 1 of y, and what they leave of the middle.
void PanelUnit::piece(const ResidualCall& call, std::int64_t row, std::int64_t begin, std::int64_t count,
                      float* memory) const {
  const ElementKernels& kernels = element_kernels_of(numerics_);
  const std::int64_t width = padded_channels(), channels = call.channels, columns = call.columns;
  const std::int64_t reach = 2 * half() * dilation_, inner = 2 * half(), delay = half() * (dilation_ + 1);
  const std::int64_t middle_count = count + inner, made_first = std::max<std::int64_t>(begin - inner, 0);
  const std::int64_t made = begin + count - made_first, kept = middle_count - made, past_count = made + reach;
  float* past = memory;
  float* middle = past + lines((count + inner + reach) * width);
  float* result = middle + lines(middle_count * width);
  auto* elements = reinterpret_cast<char*>(result + lines(count * width));
  std::fill_n(past, past_count * width, 0.0f);
  const float* x = call.x + row * channels * columns;
  window_of(call.history + row * channels * reach, reach, x, columns, channels, made_first, past_count, past,
            width);
  kernels.snake(past, past_count, width, alpha_.data(), elements);
  float* new_middle = middle + kept * width;
  Finish to;
  to.bias = first_.bias.data();
  to.y = new_middle;
  to.y_stride = width;
  kernels.product(elements, width, made, first_.weight.taps(), dilation_ * width, width,
                  first_.weight.panels(), width, to);
  if (call.start != nullptr)
    clip_rows(new_middle, made, width, call.start[row] - half() * dilation_ + made_first, call.end[row]);
  if (kept > 0) {
    std::fill_n(middle, kept * width, 0.0f);
    rows_of(call.inner + row * channels * inner + begin, inner, channels, kept, middle, width);
  }
  for (std::int64_t i = 0; i < inner; ++i) {  // column n + i of inner ++ middle, where it was made here
    const std::int64_t column = call.n[row] + i - inner;
    if (column < begin || column >= begin + count) continue;
    const float* from = new_middle + (column - made_first) * width;
    for (std::int64_t c = 0; c < channels; ++c) call.inner_after[(row * channels + c) * inner + i] = from[c];
  }
  kernels.snake(middle, middle_count, width, beta_.data(), elements);
  to.bias = second_.bias.data();
  to.y = result;
  kernels.product(elements, width, count, second_.weight.taps(), width, width, second_.weight.panels(), width,
                  to);
  if (call.start != nullptr) clip_rows(result, count, width, call.start[row] - delay + begin, call.end[row]);
  const float* skipped = past + (begin - made_first + reach - delay) * width;
  float* y = call.y + row * channels * columns + begin;
  for (std::int64_t c = 0; c < channels; c += kBlock) {
    const std::int64_t end = std::min(channels, c + kBlock);
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t i = c; i < end; ++i)
        y[i * columns + t] = result[t * width + i] + skipped[t * width + i];
    }
  }
}

void PanelUnit::run(ThreadTeam& team, const ResidualCall& call) const {
  const std::int64_t reach = 2 * half() * dilation_, inner = 2 * half(), columns = call.columns;
  const std::int64_t pieces = (columns + kColumns - 1) / kColumns, floats = lines(piece_floats(kColumns));
  float* memory = kept_memory().floats(floats * team.num_threads());
  team.run([&](Member& me) {
    me.for_each(call.rows * pieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i % pieces * kColumns;
        piece(call, i / pieces, begin, std::min(kColumns, columns - begin), memory + me.index() * floats);
      }
    });
    me.for_each(call.rows, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) keep_past(call, row, reach, inner);
    });
  });
}

}  // namespace innervoice
