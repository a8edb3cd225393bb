// Where the parts of LaneInputs lie in the memory of a call.
#pragma once

#include <cstdint>

#include "innervoice/weight.h"

namespace innervoice {

// The parts' sizes in floats, each part from a cache line on.
struct LaneMemory {
  std::int64_t codes, blocks, groups;

  LaneMemory(const Weight& w, std::int64_t M)
      : codes(in_lines(M * w.num_blocks() * kLaneColumns / 4)),
        blocks(in_lines(M * w.num_blocks())),
        groups(w.group_minimum == nullptr ? 0 : in_lines(M * w.num_groups())) {}

  std::int64_t floats() const { return codes + 2 * blocks + groups; }

 private:
  static std::int64_t in_lines(std::int64_t count) { return (count + 15) / 16 * 16; }
};

}  // namespace innervoice
