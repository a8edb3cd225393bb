// Python's view of noise by place and of the vocoder's source on the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_source(pybind11::module_& m);

}  // namespace innervoice
