// A weight whose tensors are kept alive.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "bindings/import.h"
#include "innervoice/weight.h"

namespace innervoice {

class HeldWeight {
 public:
  // data float32 or bfloat16 [N, K]; int8 [N, K] with scale float32 [N]; uint8 [N, ceil(columns / 2)] with
  // scale and maybe minimum float16 [N, ceil(columns / group)], group 32, 64 or 128. With `rows`, which is N,
  // int8 or int4 in lanes as weight.h has them: data [panels, steps, 64], scale [16 panels], or of int4 scale
  // and minimum [panels, groups, 16]. Throws std::invalid_argument otherwise.
  HeldWeight(const py::object& data, const py::object& scale, const py::object& minimum, std::int64_t columns,
             std::int64_t group, std::int64_t rows);

  const Weight& view() const { return view_; }

 private:
  const Import& hold(const char* name, const py::object& tensor);
  void hold_lanes(const Argument& data, const py::object& scale, const py::object& minimum);
  void check_group() const;
  void hold_int4(const Argument& data, const py::object& scale, const py::object& minimum);

  std::vector<std::unique_ptr<Import>> held_;
  Weight view_;
};

}  // namespace innervoice
