// Python's view of the CPU kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_cpu(pybind11::module_& m);

}  // namespace innervoice
