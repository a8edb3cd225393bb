// The voice's kernels, compiled for one set of instructions.
#include "cpu/vector_plain.h"

namespace innervoice {
namespace {

constexpr int kTileRows = 4;
constexpr int kPanelVectors = 2;

}  // namespace
}  // namespace innervoice

#include "cpu/voice/table.h"

namespace innervoice {

const VoiceKernels& plain_voice_kernels() { return kVoice; }

}  // namespace innervoice
