// The pool of KV cache pages: who holds which page, counted by reference, and which pages hold the tokens of
// which prefix. Pure C++: no Python, no torch, no memory of the pages themselves.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "innervoice/pool_state.h"

namespace innervoice {

// Fewer pages are free or cached than were asked for; nothing was allocated.
struct OutOfPages : std::runtime_error {
  OutOfPages(std::int64_t wanted, std::int64_t num_free, std::int64_t num_cached, std::int64_t num_pages);
};

// What has happened since the pool was made.
struct PoolCounters {
  std::int64_t hits = 0;       // pages that match found
  std::int64_t misses = 0;     // full pages of a prompt that match did not find
  std::int64_t published = 0;  // pages that became findable
  std::int64_t merged = 0;     // pages given up at publish for an equal one
  std::int64_t evictions = 0;  // cached pages that allocate took
};

// A fixed number of pages, 0 to num_pages - 1, of page_size tokens each. A page is free, held by one or more
// references, or cached: published, without references, kept until its place is needed. A published page
// stays held while a page behind it is. Every call happens wholly or not at all. O(1) a page but for hashing
// its tokens. Not thread-safe.
class PagePool {
 public:
  // hash_bits as in PrefixTree. Throws std::invalid_argument for a negative num_pages, a page_size below 1.
  explicit PagePool(std::int64_t num_pages, std::int64_t page_size = 16, std::int64_t hash_bits = 64);

  // `count` pages, each with one reference: free ones first, then cached ones, those let go first evicted
  // first, but never a page before the cached pages behind it. Throws OutOfPages, or std::invalid_argument
  // for a negative count.
  std::vector<Page> allocate(std::int64_t count);

  // One more reference to each page. Throws std::out_of_range (no such page), std::invalid_argument (it has
  // no references).
  void retain(const std::vector<Page>& pages);

  // One reference less to each page; without references a published page is cached, any other is free. Throws
  // as retain.
  void free(const std::vector<Page>& pages);

  // References to the page. Throws std::out_of_range, as all below that take a page.
  std::int64_t ref_count(Page page) const;

  // Makes a full page findable behind `parent`, a published page, or kNoPage. Returns the page; or, when an
  // equal one is published there, that one: the caller's reference is moved to it. Both pages must have
  // references. Throws std::invalid_argument, also for a page that is published elsewhere.
  Page publish(Page parent, Page page, PageTokens tokens);

  // The longest chain of published pages that holds the beginning of these tokens, each with one more
  // reference. Only whole pages are looked for: what may not be found, the caller leaves out.
  std::vector<Page> match(PageTokens tokens, std::int64_t num_tokens);

  // Takes a page out of the tree. Throws std::invalid_argument when it has no references, is not published,
  // or is not the last of its prefix.
  void unpublish(Page page);

  // Whether anybody but one holder may read the page, so that it must not be written: two references, or
  // published.
  bool is_shared(Page page) const;

  bool is_published(Page page) const;

  // Published pages right behind this one.
  std::int64_t num_children(Page page) const;

  std::int64_t page_size() const { return state_.tree.page_size; }
  std::int64_t num_pages() const { return static_cast<std::int64_t>(state_.ref_counts.size()); }
  std::int64_t num_free() const { return static_cast<std::int64_t>(state_.free_pages.size()); }
  std::int64_t num_cached() const { return state_.cached.size; }
  std::int64_t num_available() const { return num_free() + num_cached(); }
  const PoolCounters& counters() const { return counters_; }
  const PoolState& state() const { return state_; }

  // Throws std::logic_error when the state breaks one of its rules. O(num_pages).
  void check_integrity() const { check_state(state_); }

 private:
  void check_exists(Page page) const;
  std::int64_t& references(Page page, const char* action);
  void check_parent(Page parent);
  void hold(Page page);
  void settle(Page page);
  Page evict();

  PoolState state_;
  PoolCounters counters_;
};

}  // namespace innervoice
