// The pool of KV cache pages: who holds which page, counted by reference. Pure C++: no Python, no torch, no memory of
// the pages themselves.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace innervoice {

using Page = std::int64_t;

// Fewer pages are free than were asked for; nothing was allocated.
struct OutOfPages : std::runtime_error {
  OutOfPages(std::int64_t wanted, std::int64_t num_free, std::int64_t num_pages);
};

// A fixed number of pages, 0 to num_pages - 1. A page is free, or held by one or more references.
// Every call on a list of pages happens wholly or not at all. O(1) a page. Not thread-safe.
class PagePool {
 public:
  // Throws std::invalid_argument for a negative number.
  explicit PagePool(std::int64_t num_pages);

  // `count` free pages, each with one reference. Throws OutOfPages, or std::invalid_argument for a negative count.
  std::vector<Page> allocate(std::int64_t count);

  // One more reference to each page. Throws std::out_of_range (no such page), std::invalid_argument (the page is free).
  void retain(const std::vector<Page>& pages);

  // One reference less to each page; a page without references is free again. Throws as retain does.
  void free(const std::vector<Page>& pages);

  // References to the page; 0 when it is free. Throws std::out_of_range.
  std::int64_t ref_count(Page page) const;

  std::int64_t num_pages() const { return static_cast<std::int64_t>(ref_counts_.size()); }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  const std::vector<Page>& free_pages() const { return free_; }
  const std::vector<std::int64_t>& ref_counts() const { return ref_counts_; }

  // Throws std::logic_error when free list and reference counts disagree. O(num_pages).
  void check_integrity() const;

 private:
  std::int64_t& held(Page page, const char* action);

  std::vector<std::int64_t> ref_counts_;
  std::vector<Page> free_;  // a stack: the page freed last is reused first
};

// What check_integrity holds of a pool: every page stands on the free list once exactly when nobody refers to it.
// Throws std::logic_error that names the page.
void check_pages(const std::vector<Page>& free_pages, const std::vector<std::int64_t>& ref_counts);

}  // namespace innervoice
