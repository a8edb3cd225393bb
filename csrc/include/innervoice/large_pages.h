// Memory that is read from end to end, in large pages: a step reads all weights, and with pages of 4 KiB a
// core spends a good part of its time on finding where they lie.
#pragma once

#include <cstddef>
#include <vector>

namespace innervoice {

struct MemoryRange {
  const void* data;
  std::size_t bytes;
};

// Asks for the ranges to be put into large pages now, what lies around them in the same large pages included.
// A wish: contents do not change, and where the system has no such pages nothing happens. Linux 6.1 and
// newer.
void use_large_pages(std::vector<MemoryRange> ranges);

}  // namespace innervoice
