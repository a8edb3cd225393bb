// The kernels for AVX2; the build compiles this file alone for it.
#include "cpu/kernels.h"
#include "cpu/vector_avx2.h"

namespace innervoice {
namespace {

constexpr int kTileRows = 6;
constexpr int kPanelVectors = 2;

}  // namespace
}  // namespace innervoice

#include "cpu/bf16_product.h"
#include "cpu/kernel_table.h"

namespace innervoice {

const Kernels& avx2_kernels() { return kTable; }

}  // namespace innervoice
