// Python's view of sampling on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_sample(pybind11::module_& m);

}  // namespace innervoice
