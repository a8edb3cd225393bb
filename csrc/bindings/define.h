// One function a binding file, which adds the file's names to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace innervoice {

void define_codec(pybind11::module_& m);
void define_cpu(pybind11::module_& m);
void define_decoder(pybind11::module_& m);
void define_fuse(pybind11::module_& m);
void define_pool(pybind11::module_& m);
void define_relative(pybind11::module_& m);
void define_sample(pybind11::module_& m);
void define_source(pybind11::module_& m);
void define_spectrum(pybind11::module_& m);
void define_stream_conv(pybind11::module_& m);
void define_voice(pybind11::module_& m);

}  // namespace innervoice
