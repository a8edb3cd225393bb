// Python's view of transforms of streams and log-mel features on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_spectrum(pybind11::module_& m);

}  // namespace innervoice
