// The tree of published pages: a page's place says which tokens it and all pages before it hold. Pure C++.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/page_list.h"

namespace innervoice {

// The tokens of one full page: page_size ids, and as many keys that say what else their K and V depend on.
struct PageTokens {
  const std::int64_t* ids;
  const std::int64_t* keys;
};

// A node is a page; a child is found by its parent and its tokens, through a hash table that is chained
// inside the arrays. A hash only says where to look: parent and tokens are always compared, so that a
// collision costs time and nothing else. The arrays are open to be checked and copied; only the methods
// change them. O(page_size) a call.
struct PrefixTree {
  // hash_bits: how many low bits of the 64 are used; fewer make collisions, for tests. Throws
  // std::invalid_argument.
  PrefixTree(std::int64_t num_pages, std::int64_t page_size, std::int64_t hash_bits);

  bool contains(Page page) const { return parents[page] != kOutside; }

  // The child of `parent` (kNoPage: the root) that holds these tokens; kOutside when there is none.
  Page find(Page parent, PageTokens tokens) const;

  // Adds a page that is not in the tree below one that is, or below the root. No equal child may be there.
  void insert(Page page, Page parent, PageTokens tokens);

  // Takes out a page that has no children.
  void remove(Page page);

  PageTokens tokens(Page page) const;
  std::uint64_t hash(Page parent, PageTokens tokens) const;
  std::size_t bucket(std::uint64_t hash) const { return hash & (buckets.size() - 1); }

  std::int64_t page_size;
  std::uint64_t hash_mask;
  std::vector<Page> parents;  // [num_pages]: kNoPage below the root, kOutside when not in the tree
  std::vector<std::int64_t> num_children;  // [num_pages]
  std::vector<std::uint64_t> hashes;       // [num_pages]: 0 when not in the tree
  std::vector<Page> buckets;               // [a power of two, num_pages or more]: first page of each chain
  std::vector<Page> next_in_bucket;        // [num_pages]: kNoPage at the end, kOutside when not in the tree
  std::vector<std::int64_t>
      contents;  // [num_pages, 2, page_size]: ids, then keys; of no meaning outside the tree
};

}  // namespace innervoice
