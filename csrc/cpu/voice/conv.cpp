#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/voice/memory.h"

namespace innervoice {
namespace {

std::uint16_t bf16_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 64u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace

const VoiceKernels& voice_kernels_of(Isa isa) {
  if (!is_available(isa))
    throw std::invalid_argument(std::string("isa ") + name_of(isa) + " is not available here");
  switch (isa) {
#if defined(INNERVOICE_AVX2)
    case Isa::kAvxVnni:
    case Isa::kAvx2: return avx2_voice_kernels();
#endif
#if defined(INNERVOICE_AVX512)
    case Isa::kAvx512: return avx512_voice_kernels();
#endif
    default: return plain_voice_kernels();
  }
}

std::int64_t attend_floats(std::int64_t n, std::int64_t width) {
  constexpr std::int64_t kWidestPanel = 32, kMostRows = 12;
  const std::int64_t keys = (n + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
  return keys * (2 * width + kWidestPanel + 2 * kMostRows);
}

PackedWeight::PackedWeight(Isa isa, bool halves, const float* w, std::int64_t columns, std::int64_t taps,
                           std::int64_t depth)
    : columns_(columns), taps_(taps), depth_(depth) {
  const VoiceKernels& kernels = voice_kernels_of(isa);
  if (halves && (kernels.halves.product == nullptr || depth % 2 != 0)) {
    throw std::invalid_argument("bfloat16 products of depth " + std::to_string(depth) + " on " +
                                name_of(isa) + ": they need avx512 and an even depth");
  }
  const std::int64_t width = kernels.panel_columns, panels = (columns + width - 1) / width;
  memory_.assign(static_cast<std::size_t>(panels * taps * depth * width / (halves ? 2 : 1) + 16), 0.0f);
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
  offset_ = ((address + 63) / 64 * 64 - address) / sizeof(float);
  float* to = memory_.data() + offset_;
  auto* half = reinterpret_cast<std::uint16_t*>(to);
  for (std::int64_t n = 0; n < columns; ++n) {
    for (std::int64_t k = 0; k < taps * depth; ++k) {
      const std::int64_t panel = n / width * taps * depth, column = n % width;
      const float x = w[n * taps * depth + k];
      if (halves) {
        half[(panel + k / 2 * 2) * width + 2 * column + k % 2] = bf16_of(x);
      } else {
        to[(panel + k) * width + column] = x;
      }
    }
  }
}

void FrameConv::run(ThreadTeam& team, const float* x, std::int64_t rows, std::int64_t frames,
                    const std::int64_t* n, std::int64_t stride, std::int64_t pad, float* y,
                    std::int64_t out_frames, const std::int64_t* out_n) const {
  const ElementKernels& kernels = element_kernels_of(numerics_);
  const PackedWeight& w = layer_.weight;
  const std::int64_t size = element_bytes(numerics_), depth = w.depth(), columns = w.columns();
  const std::int64_t padded = std::max(frames + pad, (out_frames - 1) * stride + w.taps()) + 1;
  auto* elements =
      reinterpret_cast<char*>(kept_memory().floats(element_floats(numerics_, rows * padded * depth)));
  const std::vector<Piece> in = pieces_of(rows, n, kFrames), out = pieces_of(rows, out_n, kFrames);
  for (std::int64_t row = 0; row < rows; ++row) {
    char* begin = elements + row * padded * depth * size;
    std::memset(begin, 0, static_cast<std::size_t>(pad * depth * size));
    std::memset(begin + (pad + n[row]) * depth * size, 0,
                static_cast<std::size_t>((padded - pad - n[row]) * depth * size));
    std::fill_n(y + (row * out_frames + out_n[row]) * columns, (out_frames - out_n[row]) * columns, 0.0f);
  }
  team.run([&](Member& me) {
    me.for_each(static_cast<std::int64_t>(in.size()), 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const Piece& p = in[static_cast<std::size_t>(i)];
        kernels.narrow(x + (p.row * frames + p.first) * depth, p.count * depth,
                       elements + (p.row * padded + pad + p.first) * depth * size);
      }
    });
    me.for_each(static_cast<std::int64_t>(out.size()), 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const Piece& p = out[static_cast<std::size_t>(i)];
        Finish to;
        to.bias = layer_.bias.data();
        to.y = y + (p.row * out_frames + p.first) * columns;
        to.y_stride = columns;
        kernels.product(elements + (p.row * padded + p.first * stride) * depth * size, stride * depth,
                        p.count, w.taps(), depth, depth, w.panels(), columns, to);
      }
    });
  });
}

}  // namespace innervoice
