// Python's view of the native code. Only this file and bindings/ know Python.
#include "bindings/define.h"

namespace innervoice {

// std::invalid_argument becomes ValueError, std::out_of_range IndexError and std::logic_error RuntimeError,
// as pybind11 has it.
PYBIND11_MODULE(_C, m) {
  m.doc() = "Native parts of innervoice. Docstrings and types: _C.pyi.";
  define_pool(m);
  define_cpu(m);
  define_decoder(m);
  define_voice(m);
  define_codec(m);
  define_source(m);
  define_relative(m);
  define_spectrum(m);
  define_stream_conv(m);
  define_sample(m);
  define_fuse(m);
}

}  // namespace innervoice
