// What a kernel file offers the voice for its instructions. Every function runs on the calling thread alone.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"

namespace innervoice {

// What becomes of a product's sums, in this order: + bias, GELU, ELU or SiLU, * scale, + add, ELU,
// stored as floats and as elements.
struct Finish {
  const float* bias = nullptr;  // [columns]
  bool gelu = false;
  bool elu = false;
  bool silu = false;
  bool elu_last = false;
  const float* scale = nullptr;  // [columns]
  const float* add = nullptr;    // [rows, columns]
  std::int64_t add_stride = 0;
  float* y = nullptr;  // [rows, columns]
  std::int64_t y_stride = 0;
  void* elements = nullptr;  // [rows, columns]
  std::int64_t element_stride = 0;
};

// Elements are what products take in: float, or bfloat16 with sums in float.
struct ElementKernels {
  // sum_tap,k a[m * row_stride + tap * tap_stride + k] w[n, tap, k] for m in [0, rows), n in [0, columns);
  // panels: of voice.h's PackedWeight. bfloat16: depth is even.
  void (*product)(const void* a, std::int64_t row_stride, std::int64_t rows, std::int64_t taps,
                  std::int64_t tap_stride, std::int64_t depth, const void* panels, std::int64_t columns,
                  const Finish& finish);

  void (*narrow)(const float* x, std::int64_t count, void* elements);

  // LayerNorm of rows of a multiple of 16 channels.
  void (*layer_norm)(const float* x, std::int64_t rows, std::int64_t channels, const float* weight,
                     const float* bias, float eps, void* elements);

  // mish(x scale + shift) + after (null: none), a scale, shift and after a channel.
  void (*norm_mish)(const float* x, std::int64_t rows, std::int64_t channels, const float* scale,
                    const float* shift, const float* after, void* elements);

  // softmax(q k^T) v of one head: n rows of width elements, q scaled already, rows `stride` elements apart.
  // scratch: attend_floats(n, width) floats.
  void (*attend)(const void* q, const void* k, const void* v, std::int64_t stride, std::int64_t n,
                 std::int64_t width, void* y, std::int64_t y_stride, float* scratch);

  // x + sin(a x)^2 / (a + 1e-9) of [rows, channels], a multiple of 16 channels.
  void (*snake)(const float* x, std::int64_t rows, std::int64_t channels, const float* alpha, void* elements);
};

// Rows of floats, `stride` apart.
struct RowsOf {
  const float* data;
  std::int64_t stride, count;
};

// A head of relative.py's attention: keys and values of the past, then new ones; positions: panels of the
// `distances` by falling distance, a weight [distances, 1, width]; visible [queries, keys].
struct RelativeHead {
  RowsOf q, k[2], v[2];
  const float *bias_u, *bias_v;
  const void* positions;
  std::int64_t distances, width;
  const bool* visible;
};

// A Fourier transform cut into stages. A stage: `groups` times `stride` transforms of `radix` numbers; turns
// [radix] of one, twiddles [groups, radix] behind it: cosine and sine each.
struct FourierStep {
  std::int64_t radix, groups, stride;
  const double *turns, *twiddles;
};
// Of `size` real numbers: the stages of a transform of half of them, and what puts its halves together, [size
// / 2 + 1].
struct FourierPlan {
  std::int64_t size, num_steps;
  const FourierStep* steps;
  const double* turns;
};

constexpr int kFourierLanes = 8;  // frames that are transformed together

// Rows that a gathered product takes at most.
constexpr std::int64_t kGathered = 96;

// Signals of few channels: outputs that are summed together, and columns that may be read and written behind
// a signal's last one.
constexpr std::int64_t kWaveOut = 4, kWaveSlack = 48;

// A frame of the source, of one pitch: cycles of the fundamental before it, and a sample's; turns
// [harmonics]: phases, null: none; noise: `noise_stride` floats from harmonic to harmonic, null: none; weight
// [harmonics].
struct SourceFrame {
  double begin, step;
  bool is_voiced;
  float loud, rough, bias;
  const float *turns, *noise, *weight;
  std::int64_t noise_stride, harmonics, len;
};

struct VoiceKernels {
  std::int64_t panel_columns, double_columns;
  ElementKernels floats;
  ElementKernels halves;  // null functions where the instructions have no products of bfloat16

  // y += mish(x scale + shift).
  void (*add_norm_mish)(const float* x, std::int64_t rows, std::int64_t channels, const float* scale,
                        const float* shift, float* y);

  // sum_tap,k rows[tap * count + m][k] w[n, tap, k] for m in [0, count), count <= kGathered: rows that lie
  // anywhere.
  void (*gathered_product)(const float* const* rows, std::int64_t count, std::int64_t taps,
                           std::int64_t depth, const float* panels, std::int64_t columns,
                           const Finish& finish);

  // The same plus bias for few columns, the weight [N, taps, K] as it is; y [count, columns].
  void (*gathered_dots)(const float* const* rows, std::int64_t count, std::int64_t taps, std::int64_t depth,
                        const float* weight, std::int64_t columns, const float* bias, float* y);

  // y [count, columns] = bias[n] + the same in double, whole panels of double_columns columns.
  void (*double_product)(const double* const* rows, std::int64_t count, std::int64_t taps, std::int64_t depth,
                         const double* panels, std::int64_t columns, const double* bias, double* y);

  void (*elu_row)(const float* x, std::int64_t count, float* y);

  // y = softmax(scale q k^T) v of one query, `count` keys from place `first` of a ring of `places`, `stride`
  // floats from one to the next; `width` of a multiple of 16. scores: count + 16 floats.
  void (*ring_attend)(const float* q, float scale, const float* k, const float* v, std::int64_t stride,
                      std::int64_t places, std::int64_t first, std::int64_t count, std::int64_t width,
                      float* scores, float* y);

  // y[n, t] = bias[n] + sum_k,tap x[k, t + tap * step] w[n, k, tap] of `channels` signals for n in [0, out),
  // a multiple of kWaveOut; rows `stride` floats apart; weight: [out / kWaveOut, channels, taps, kWaveOut].
  void (*wave_conv)(const float* x, std::int64_t stride, std::int64_t channels, std::int64_t out,
                    std::int64_t taps, std::int64_t step, const float* weight, const float* bias, float* y,
                    std::int64_t y_stride, std::int64_t columns);

  // x + sin(a x)^2 / (a + 1e-9) of one signal.
  void (*wave_snake)(const float* x, std::int64_t columns, float alpha, float* y);

  // x, or slope x below 0, in place; up to a vector behind the last number is written too. slope 1: nothing.
  void (*leaky_row)(float* x, std::int64_t count, float slope);

  // Four normals of each counter (first[i], second) of the key (k0, k1), as noise.py says: y [count, 4].
  void (*normals)(const std::int64_t* first, std::int64_t count, std::uint32_t second, std::uint32_t k0,
                  std::uint32_t k1, float* y);

  // The samples of a frame, as source.py says.
  void (*source_frame)(const SourceFrame& frame, float* y);

  // Queries of one head over all keys; `width` a multiple of 16. scratch: relative_floats(keys, distances,
  // width).
  void (*relative_attend)(const RelativeHead& head, float* y, std::int64_t y_stride, float* scratch);

  // Spectra of kFourierLanes frames, a frame a lane: z [2, size / 2, lanes], the numbers at even places, then
  // those at odd ones, and as much memory behind them; real, imag [size / 2 + 1, lanes].
  void (*real_fourier)(const FourierPlan& plan, double* z, float* real, float* imag);

  // mish((x - mean) scale + shift) of any number.
  void (*mish_row)(const float* x, std::int64_t count, float mean, float scale, float shift, float* y);
};

// Throws std::invalid_argument when isa is not available here.
const VoiceKernels& voice_kernels_of(Isa isa);

// Floats that `attend` needs, and `relative_attend`.
std::int64_t attend_floats(std::int64_t n, std::int64_t width);
std::int64_t relative_floats(std::int64_t keys, std::int64_t distances, std::int64_t width);

const VoiceKernels& plain_voice_kernels();
const VoiceKernels& avx2_voice_kernels();
const VoiceKernels& avx512_voice_kernels();

}  // namespace innervoice
