// Python's view of a decoder on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_decoder(pybind11::module_& m);

}  // namespace innervoice
