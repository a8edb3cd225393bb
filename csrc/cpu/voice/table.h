// The voice's table of a kernel file, included at its end.
#pragma once

#include "cpu/voice/double.h"
#include "cpu/voice/fft.h"
#include "cpu/voice/gathered.h"
#include "cpu/voice/kernels.h"
#include "cpu/voice/relative.h"
#include "cpu/voice/source.h"
#include "cpu/voice/wave.h"

namespace innervoice {
namespace {

template <typename E>
constexpr ElementKernels element_kernels() {
  return {product<E>, narrow<E>, layer_norm<E>, norm_mish<E>, attend<E>, snake<E>};
}

#if defined(INNERVOICE_HALVES)
constexpr ElementKernels kHalves = element_kernels<std::uint16_t>();
#else
constexpr ElementKernels kHalves = {};
#endif

constexpr VoiceKernels kVoice = {kPanelColumns,   kDoubleColumns, element_kernels<float>(),
                                 kHalves,         add_norm_mish,  gathered_product,
                                 gathered_dots,   double_product, elu_row,
                                 ring_attend,     wave_conv,      wave_snake,
                                 leaky_row,       normals,        source_frame,
                                 relative_attend, real_fourier,   mish_row};

}  // namespace
}  // namespace innervoice
