// The table of a kernel file, included at its end.
#pragma once

#include "cpu/gemm_kernels.h"

namespace innervoice {
namespace {

constexpr Kernels kTable = {kTileRows, kPanelColumns, pack, tile, expand};

}  // namespace
}  // namespace innervoice
