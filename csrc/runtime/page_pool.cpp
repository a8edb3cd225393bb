#include "innervoice/page_pool.h"

#include <string>

namespace innervoice {
namespace {

std::string no_such_page(Page page, std::size_t num_pages) {
  return "page " + std::to_string(page) + " does not exist: the pool has pages 0 to " +
         std::to_string(static_cast<Page>(num_pages) - 1);
}

bool exists(Page page, std::size_t num_pages) { return page >= 0 && page < static_cast<Page>(num_pages); }

[[noreturn]] void corrupt(Page page, const std::string& what) {
  throw std::logic_error("page pool is corrupt: page " + std::to_string(page) + " " + what);
}

}  // namespace

OutOfPages::OutOfPages(std::int64_t wanted, std::int64_t num_free, std::int64_t num_pages)
    : std::runtime_error("asked for " + std::to_string(wanted) + " pages, " + std::to_string(num_free) + " of " +
                         std::to_string(num_pages) + " are free") {}

PagePool::PagePool(std::int64_t num_pages) {
  if (num_pages < 0)
    throw std::invalid_argument("num_pages is " + std::to_string(num_pages) + ": it must be 0 or more");
  ref_counts_.assign(num_pages, 0);
  free_.reserve(num_pages);
  for (Page page = num_pages; page-- > 0;) free_.push_back(page);
}

std::vector<Page> PagePool::allocate(std::int64_t count) {
  if (count < 0) throw std::invalid_argument("count is " + std::to_string(count) + ": it must be 0 or more");
  if (count > num_free()) throw OutOfPages(count, num_free(), num_pages());
  std::vector<Page> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  for (Page page : pages) ref_counts_[page] = 1;
  return pages;
}

void PagePool::retain(const std::vector<Page>& pages) {
  std::size_t done = 0;
  try {
    for (; done < pages.size(); ++done) ++held(pages[done], "retained");
  } catch (...) {
    while (done > 0) --ref_counts_[pages[--done]];
    throw;
  }
}

void PagePool::free(const std::vector<Page>& pages) {
  std::vector<Page> freed;
  std::size_t done = 0;
  try {
    for (; done < pages.size(); ++done) {
      if (--held(pages[done], "freed") == 0) freed.push_back(pages[done]);
    }
  } catch (...) {
    while (done > 0) ++ref_counts_[pages[--done]];
    throw;
  }
  free_.insert(free_.end(), freed.begin(), freed.end());
}

std::int64_t PagePool::ref_count(Page page) const {
  if (!exists(page, ref_counts_.size())) throw std::out_of_range(no_such_page(page, ref_counts_.size()));
  return ref_counts_[page];
}

void PagePool::check_integrity() const { check_pages(free_, ref_counts_); }

std::int64_t& PagePool::held(Page page, const char* action) {
  if (!exists(page, ref_counts_.size())) throw std::out_of_range(no_such_page(page, ref_counts_.size()));
  std::int64_t& count = ref_counts_[page];
  if (count == 0) throw std::invalid_argument("page " + std::to_string(page) + " is free: it cannot be " + action);
  return count;
}

void check_pages(const std::vector<Page>& free_pages, const std::vector<std::int64_t>& ref_counts) {
  std::vector<bool> is_free(ref_counts.size(), false);
  for (Page page : free_pages) {
    if (!exists(page, ref_counts.size())) corrupt(page, "is on the free list but does not exist");
    if (is_free[page]) corrupt(page, "is on the free list twice");
    is_free[page] = true;
  }
  for (std::size_t page = 0; page < ref_counts.size(); ++page) {
    const std::int64_t count = ref_counts[page];
    if (count < 0) corrupt(page, "has " + std::to_string(count) + " references");
    if (count > 0 && is_free[page]) corrupt(page, "is on the free list with " + std::to_string(count) + " references");
    if (count == 0 && !is_free[page]) corrupt(page, "has no references and is not on the free list");
  }
}

}  // namespace innervoice
