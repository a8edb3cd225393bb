// Layers of networks from Python's tensors of floats, and the checks that they share.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/import.h"
#include "innervoice/voice.h"

namespace innervoice {

using Tensors = std::vector<py::object>;
using IsaName = std::optional<std::string>;

inline Numerics numerics_of(bool halves, const IsaName& isa) {
  return {isa ? isa_named(*isa) : best_isa(), halves};
}

// A tensor of floats and its sizes, held for the length of a call.
class Floats {
 public:
  Floats(const char* name, const py::object& tensor) : import_(name, tensor), name_(name) {}

  const float* match(Pattern pattern) const {
    return innervoice::match<const float>(name_, import_.argument(), pattern);
  }
  float* match_writable(Pattern pattern) const {
    return innervoice::match<float>(name_, import_.argument(), pattern);
  }

 private:
  Import import_;
  const char* name_;
};

inline std::vector<float> vector_of(const char* name, const py::object& tensor, std::int64_t expected) {
  const Floats floats(name, tensor);
  Size N("N");
  N.bind(expected);
  const float* data = floats.match({N});
  return {data, data + expected};
}

inline PackedWeight weight_of(Numerics numerics, const char* name, const py::object& tensor) {
  const Floats floats(name, tensor);
  Size N("N"), taps("taps"), K("K");
  const float* data = floats.match({N, taps, K});
  return {numerics.isa, numerics.halves, data, N.value(), taps.value(), K.value()};
}

inline Affine affine_of(Numerics numerics, const char* name, const py::object& weight,
                        const py::object& bias) {
  PackedWeight packed = weight_of(numerics, name, weight);
  const std::int64_t columns = packed.columns();
  return {std::move(packed), vector_of(name, bias, columns)};
}

inline Norm norm_of(const char* name, const py::object& weight, const py::object& bias,
                    std::int64_t channels) {
  return {vector_of(name, weight, channels), vector_of(name, bias, channels)};
}

inline void need(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

inline void need_lengths(const std::int64_t* n, std::int64_t rows, std::int64_t most) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (n[row] < 0 || n[row] > most) {
      throw std::invalid_argument("n: row " + std::to_string(row) + " has length " + std::to_string(n[row]) +
                                  ", expected 0 to " + std::to_string(most));
    }
  }
}

}  // namespace innervoice
