#include "innervoice/page_pool.h"

#include <algorithm>
#include <string>

namespace innervoice {
namespace {

std::string name_of(Page page) { return "page " + std::to_string(page); }

std::int64_t not_negative(const char* name, std::int64_t value) {
  if (value < 0)
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                ": it must be 0 or more");
  return value;
}

}  // namespace

OutOfPages::OutOfPages(std::int64_t wanted, std::int64_t num_free, std::int64_t num_cached,
                       std::int64_t num_pages)
    : std::runtime_error("asked for " + std::to_string(wanted) + " pages, " + std::to_string(num_free) +
                         " of " + std::to_string(num_pages) + " are free, " + std::to_string(num_cached) +
                         " cached and " + std::to_string(num_pages - num_free - num_cached) + " held") {}

PagePool::PagePool(std::int64_t num_pages, std::int64_t page_size, std::int64_t hash_bits)
    : state_(not_negative("num_pages", num_pages), page_size, hash_bits) {
  state_.free_pages.reserve(num_pages);
  for (Page page = num_pages; page-- > 0;) state_.free_pages.push_back(page);
}

std::vector<Page> PagePool::allocate(std::int64_t count) {
  not_negative("count", count);
  if (count > num_available()) throw OutOfPages(count, num_free(), num_cached(), num_pages());
  std::vector<Page>& stack = state_.free_pages;
  std::vector<Page> pages(count);
  const std::int64_t num_from_stack = std::min(count, num_free());
  std::copy_n(stack.rbegin(), num_from_stack, pages.begin());
  stack.resize(stack.size() - num_from_stack);
  std::generate(pages.begin() + num_from_stack, pages.end(), [this] { return evict(); });
  for (Page page : pages) state_.ref_counts[page] = 1;
  return pages;
}

void PagePool::retain(const std::vector<Page>& pages) {
  std::size_t done = 0;
  try {
    for (; done < pages.size(); ++done) ++references(pages[done], "retained");
  } catch (...) {
    while (done > 0) --state_.ref_counts[pages[--done]];
    throw;
  }
}

void PagePool::free(const std::vector<Page>& pages) {
  std::vector<Page> let_go;
  let_go.reserve(pages.size());
  std::size_t done = 0;
  try {
    for (; done < pages.size(); ++done) {
      if (--references(pages[done], "freed") == 0) let_go.push_back(pages[done]);
    }
  } catch (...) {
    while (done > 0) ++state_.ref_counts[pages[--done]];
    throw;
  }
  for (Page page : let_go) settle(page);
}

std::int64_t PagePool::ref_count(Page page) const {
  check_exists(page);
  return state_.ref_counts[page];
}

Page PagePool::publish(Page parent, Page page, PageTokens tokens) {
  references(page, "published");
  if (parent != kNoPage) check_parent(parent);
  const Page equal = state_.tree.find(parent, tokens);
  if (equal == page) return page;
  if (is_published(page)) {
    throw std::invalid_argument(name_of(page) +
                                " is published already, with other tokens or behind another page");
  }
  if (equal == kOutside) {
    state_.tree.insert(page, parent, tokens);
    if (parent != kNoPage) ++state_.num_held_children[parent];
    ++counters_.published;
    return page;
  }
  hold(equal);
  if (--state_.ref_counts[page] == 0) settle(page);
  ++counters_.merged;
  return equal;
}

std::vector<Page> PagePool::match(PageTokens tokens, std::int64_t num_tokens) {
  const std::int64_t num_full = num_tokens / page_size();
  std::vector<Page> pages;
  pages.reserve(num_full);
  for (std::int64_t index = 0; index < num_full; ++index) {
    const std::int64_t first = index * page_size();
    const Page page =
        state_.tree.find(pages.empty() ? kNoPage : pages.back(), {tokens.ids + first, tokens.keys + first});
    if (page == kOutside) break;
    pages.push_back(page);
  }
  for (Page page : pages) hold(page);
  const auto num_found = static_cast<std::int64_t>(pages.size());
  counters_.hits += num_found;
  counters_.misses += num_full - num_found;
  return pages;
}

void PagePool::unpublish(Page page) {
  references(page, "unpublished");
  if (!is_published(page))
    throw std::invalid_argument(name_of(page) + " is not published: it cannot be unpublished");
  if (const std::int64_t count = num_children(page); count > 0) {
    throw std::invalid_argument(name_of(page) + " has " + std::to_string(count) +
                                " published pages behind it: it cannot be unpublished before them");
  }
  const Page parent = state_.tree.parents[page];
  state_.tree.remove(page);
  if (parent == kNoPage) return;
  --state_.num_held_children[parent];
  settle(parent);
}

bool PagePool::is_shared(Page page) const { return ref_count(page) > 1 || is_published(page); }

bool PagePool::is_published(Page page) const {
  check_exists(page);
  return state_.tree.contains(page);
}

std::int64_t PagePool::num_children(Page page) const {
  check_exists(page);
  return state_.tree.num_children[page];
}

void PagePool::check_exists(Page page) const {
  if (page >= 0 && page < num_pages()) return;
  throw std::out_of_range(name_of(page) + " does not exist: the pool has pages 0 to " +
                          std::to_string(num_pages() - 1));
}

std::int64_t& PagePool::references(Page page, const char* action) {
  check_exists(page);
  std::int64_t& count = state_.ref_counts[page];
  if (count == 0) throw std::invalid_argument(name_of(page) + " has no references: it cannot be " + action);
  return count;
}

void PagePool::check_parent(Page parent) {
  references(parent, "a parent");
  if (!is_published(parent))
    throw std::invalid_argument(name_of(parent) + " is not published: it cannot be a parent");
}

// One more reference to a page of the tree, whose parent has references or is the root: so nothing further up
// changes.
void PagePool::hold(Page page) {
  if (state_.cached.contains(page)) {
    state_.cached.remove(page);
    const Page parent = state_.tree.parents[page];
    if (parent != kNoPage) ++state_.num_held_children[parent];
  }
  ++state_.ref_counts[page];
}

// Puts a page where it belongs when its last holder may be gone. A parent is cached after the last of its
// children, which keeps the list of cached pages in an order in which they can be evicted.
void PagePool::settle(Page page) {
  if (!state_.tree.contains(page)) return state_.free_pages.push_back(page);
  while (page != kNoPage && !state_.is_held(page) && !state_.cached.contains(page)) {
    state_.cached.push_back(page);
    page = state_.tree.parents[page];
    if (page != kNoPage) --state_.num_held_children[page];
  }
}

Page PagePool::evict() {
  const Page page = state_.cached.oldest;
  state_.cached.remove(page);
  state_.tree.remove(page);
  ++counters_.evictions;
  return page;
}

}  // namespace innervoice
