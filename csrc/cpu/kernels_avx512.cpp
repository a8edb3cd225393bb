// The kernels for AVX-512; the build compiles this file alone for it.
#include "cpu/kernels.h"
#include "cpu/vector_avx512.h"

namespace innervoice {
namespace {

constexpr int kTileRows = 12;
constexpr int kPanelVectors = 2;

}  // namespace
}  // namespace innervoice

#include "cpu/bf16_dots.h"
#include "cpu/kernel_table.h"

namespace innervoice {

const Kernels& avx512_kernels() { return kTable; }

}  // namespace innervoice
