// The Fourier transform of real numbers, a frame a lane, in double: then a bin of a thousandth of its frame's
// strength still has float's digits. Loops over lanes become vectors of whatever a kernel file is compiled
// for.
#pragma once

#include <cstdint>

#include "cpu/voice/kernels.h"

namespace innervoice {
namespace {

struct Complexes {
  double real[kFourierLanes] = {}, imag[kFourierLanes] = {};

  // += (a + b i) (c + d i).
  void add_product(const double* a, const double* b, double c, double d) {
    for (int l = 0; l < kFourierLanes; ++l) {
      real[l] += a[l] * c - b[l] * d;
      imag[l] += a[l] * d + b[l] * c;
    }
  }
};

// A stage of Stockham's transform: `step.radix` numbers, `far` apart, are transformed, turned and put side by
// side.
inline void fourier_step(const FourierStep& step, const double* x, const double* xi, double* y, double* yi) {
  const std::int64_t r = step.radix, far = step.groups * step.stride;
  for (std::int64_t p = 0; p < step.groups; ++p) {
    for (std::int64_t q = 0; q < step.stride; ++q) {
      for (std::int64_t k = 0; k < r; ++k) {
        Complexes sum, turned;
        for (std::int64_t i = 0; i < r; ++i) {
          const std::int64_t from = (q + step.stride * p + far * i) * kFourierLanes;
          const double* turn = step.turns + 2 * (i * k % r);
          sum.add_product(x + from, xi + from, turn[0], turn[1]);
        }
        const std::int64_t to = (q + step.stride * (r * p + k)) * kFourierLanes;
        const double* twiddle = step.twiddles + 2 * (p * r + k);
        turned.add_product(sum.real, sum.imag, twiddle[0], twiddle[1]);
        for (int l = 0; l < kFourierLanes; ++l) {
          y[to + l] = turned.real[l];
          yi[to + l] = turned.imag[l];
        }
      }
    }
  }
}

// Numbers at even places are real parts and those at odd ones imaginary parts of a transform of half the
// size.
inline void real_fourier(const FourierPlan& plan, double* z, float* real, float* imag) {
  const std::int64_t half = plan.size / 2;
  double *x = z, *xi = z + half * kFourierLanes, *y = xi + half * kFourierLanes,
         *yi = y + half * kFourierLanes;
  for (std::int64_t s = 0; s < plan.num_steps; ++s) {
    fourier_step(plan.steps[s], x, xi, y, yi);
    double *other = x, *other_imag = xi;
    x = y, xi = yi;
    y = other, yi = other_imag;
  }
  for (std::int64_t k = 0; k <= half; ++k) {
    const std::int64_t a = k % half * kFourierLanes, b = (half - k) % half * kFourierLanes;
    Complexes sum, odd;
    for (int l = 0; l < kFourierLanes; ++l) {
      sum.real[l] = (x[a + l] + x[b + l]) * 0.5;
      sum.imag[l] = (xi[a + l] - xi[b + l]) * 0.5;
      odd.real[l] = (xi[a + l] + xi[b + l]) * 0.5;
      odd.imag[l] = (x[b + l] - x[a + l]) * 0.5;
    }
    sum.add_product(odd.real, odd.imag, plan.turns[2 * k], plan.turns[2 * k + 1]);
    for (int l = 0; l < kFourierLanes; ++l) {
      real[k * kFourierLanes + l] = static_cast<float>(sum.real[l]);
      imag[k * kFourierLanes + l] = k % half == 0 ? 0.0f : static_cast<float>(sum.imag[l]);
    }
  }
}

}  // namespace
}  // namespace innervoice
