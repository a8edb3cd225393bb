// A doubly linked list of pages, threaded through two arrays: nothing is allocated after construction.
#pragma once

#include <cstdint>
#include <vector>

namespace innervoice {

using Page = std::int64_t;

constexpr Page kNoPage = -1;   // the end of a chain of pages; as a parent in the prefix tree: the root
constexpr Page kOutside = -2;  // the page stands in no chain, or not in the tree

// Pages in the order they were appended, each at most once. The arrays are open to be checked and copied;
// only the methods change them. Every call but the constructor is O(1).
struct PageList {
  explicit PageList(std::int64_t num_pages) : older(num_pages, kOutside), newer(num_pages, kOutside) {}

  bool contains(Page page) const { return older[page] != kOutside; }

  // The page must not be in the list.
  void push_back(Page page) {
    older[page] = newest;
    newer[page] = kNoPage;
    (newest == kNoPage ? oldest : newer[newest]) = page;
    newest = page;
    ++size;
  }

  // The page must be in the list.
  void remove(Page page) {
    (older[page] == kNoPage ? oldest : newer[older[page]]) = newer[page];
    (newer[page] == kNoPage ? newest : older[newer[page]]) = older[page];
    older[page] = newer[page] = kOutside;
    --size;
  }

  std::vector<Page> older,
      newer;  // [num_pages]: neighbours, kNoPage at the ends, kOutside when not in the list
  Page oldest = kNoPage, newest = kNoPage;
  std::int64_t size = 0;
};

}  // namespace innervoice
