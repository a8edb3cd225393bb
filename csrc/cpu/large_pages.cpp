#include "innervoice/large_pages.h"

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace innervoice {

#if defined(__linux__)
namespace {

constexpr std::uintptr_t kLargePage = 2u << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers do not have

}  // namespace

void use_large_pages(std::vector<MemoryRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.data < b.data; });
  std::uintptr_t done = 0;  // before which everything has been asked for
  for (const MemoryRange& range : ranges) {
    const auto data = reinterpret_cast<std::uintptr_t>(range.data);
    const std::uintptr_t begin = std::max(data / kLargePage * kLargePage, done);
    const std::uintptr_t end = (data + range.bytes + kLargePage - 1) / kLargePage * kLargePage;
    if (begin >= end) continue;
    madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
    done = end;
  }
}
#else
void use_large_pages(std::vector<MemoryRange>) {}
#endif

}  // namespace innervoice
