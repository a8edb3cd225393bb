// Python's view of the speech decoder's networks on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_codec(pybind11::module_& m);

}  // namespace innervoice
