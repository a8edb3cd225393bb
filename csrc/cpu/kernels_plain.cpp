// The kernels in C++ alone.
#include "cpu/kernels.h"
#include "cpu/vector_plain.h"

namespace innervoice {
namespace {

constexpr int kTileRows = 4;
constexpr int kPanelVectors = 2;

}  // namespace
}  // namespace innervoice

#include "cpu/bf16_product.h"
#include "cpu/kernel_table.h"

namespace innervoice {

const Kernels& plain_kernels() { return kTable; }

}  // namespace innervoice
