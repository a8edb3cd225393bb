// Python's view of the attention and the layers of the flow's encoder on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_relative(pybind11::module_& m);

}  // namespace innervoice
