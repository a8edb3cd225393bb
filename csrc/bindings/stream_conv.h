// Python's view of the vocoder's convolutions over a stream.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_stream_conv(pybind11::module_& m);

}  // namespace innervoice
