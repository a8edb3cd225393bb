// What a page pool knows, as plain data, and the rules that hold between its parts.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/prefix_tree.h"

namespace innervoice {

// A page is in exactly one of three places: on the free list, on the list of cached pages, or held. It is
// held while it has references, and, if it is in the tree, while one of its children is held.
struct PoolState {
  PoolState(std::int64_t num_pages, std::int64_t page_size, std::int64_t hash_bits)
      : ref_counts(num_pages, 0),
        num_held_children(num_pages, 0),
        tree(num_pages, page_size, hash_bits),
        cached(num_pages) {}

  bool is_held(Page page) const { return ref_counts[page] > 0 || num_held_children[page] > 0; }

  std::vector<Page> free_pages;                 // a stack: the page freed last is reused first
  std::vector<std::int64_t> ref_counts;         // [num_pages]
  std::vector<std::int64_t> num_held_children;  // [num_pages]
  PrefixTree tree;
  PageList cached;  // pages of the tree that nobody holds, in the order they were let go: children before
                    // their parent
};

// Throws std::logic_error that names a page, and says what is wrong with it, unless every rule of the state
// holds. O(1) a page but for hashing its tokens.
void check_state(const PoolState& state);

// The rule of the three places alone: a page stands on the free list or among the cached once exactly when
// its number of holders is 0. Throws as check_state does.
void check_pages(const std::vector<Page>& free_pages, const std::vector<std::int64_t>& holders,
                 const std::vector<Page>& cached_pages);

}  // namespace innervoice
