// The voice's kernels, compiled for one set of instructions.
#include "cpu/vector_avx2.h"

namespace innervoice {
namespace {

constexpr int kTileRows = 6;
constexpr int kPanelVectors = 2;

}  // namespace
}  // namespace innervoice

#include "cpu/voice/table.h"

namespace innervoice {

const VoiceKernels& avx2_voice_kernels() { return kVoice; }

}  // namespace innervoice
