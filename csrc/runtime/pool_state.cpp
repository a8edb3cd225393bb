#include "innervoice/pool_state.h"

#include <stdexcept>
#include <string>

namespace innervoice {
namespace {

[[noreturn]] void corrupt(Page page, const std::string& what) {
  throw std::logic_error("page pool is corrupt: page " + std::to_string(page) + " " + what);
}

void require(bool holds, Page page, const char* what) {
  if (!holds) corrupt(page, what);
}

Page size_of(const PoolState& state) { return static_cast<Page>(state.ref_counts.size()); }

bool exists(Page page, std::size_t num_pages) { return page >= 0 && page < static_cast<Page>(num_pages); }

// The cached pages from oldest to newest.
std::vector<Page> walk_cached(const PageList& list) {
  const std::size_t num_pages = list.older.size();
  std::vector<Page> pages;
  std::vector<bool> is_listed(num_pages, false);
  Page before = kNoPage;
  for (Page page = list.oldest; page != kNoPage; before = page, page = list.newer[page]) {
    require(exists(page, num_pages), page, "is in the cached list but does not exist");
    require(!is_listed[page], page, "is in the cached list twice");
    require(list.older[page] == before, page, "is linked back to another page than the one before it");
    is_listed[page] = true;
    pages.push_back(page);
  }
  require(list.newest == before, list.newest,
          "is called the newest cached page but is not the last of the list");
  require(list.size == static_cast<std::int64_t>(pages.size()), list.newest,
          "ends a cached list of another size");
  for (std::size_t page = 0; page < num_pages; ++page) {
    const bool has_links = list.older[page] != kOutside || list.newer[page] != kOutside;
    require(has_links == is_listed[page], page, "has links of the cached list but is not in it");
  }
  return pages;
}

// Every chain of the hash table: pages of the tree, each once and where its hash says.
void check_buckets(const PrefixTree& tree) {
  const std::size_t num_pages = tree.parents.size();
  std::vector<bool> is_chained(num_pages, false);
  for (std::size_t bucket = 0; bucket < tree.buckets.size(); ++bucket) {
    for (Page page = tree.buckets[bucket]; page != kNoPage; page = tree.next_in_bucket[page]) {
      require(exists(page, num_pages), page, "is in the hash table but does not exist");
      require(!is_chained[page], page, "is in the hash table twice");
      require(tree.bucket(tree.hashes[page]) == bucket, page, "is in a bucket that is not its hash's");
      is_chained[page] = true;
    }
  }
  for (std::size_t page = 0; page < num_pages; ++page) {
    require(is_chained[page] == tree.contains(page), page, "is in only one of prefix tree and hash table");
    require(is_chained[page] || tree.next_in_bucket[page] == kOutside, page,
            "has a link of the hash table but is not in it");
  }
}

// Parents are in the tree, and every way up ends at the root.
void check_parents(const PrefixTree& tree) {
  const std::size_t num_pages = tree.parents.size();
  std::vector<bool> is_rooted(num_pages, false);
  for (std::size_t first = 0; first < num_pages; ++first) {
    std::vector<Page> path;
    for (Page page = first; tree.contains(page) && !is_rooted[page]; page = tree.parents[page]) {
      path.push_back(page);
      const Page parent = tree.parents[page];
      require(parent == kNoPage || (exists(parent, num_pages) && tree.contains(parent)), page,
              "has a parent outside the tree");
      require(path.size() <= num_pages, page, "is its own ancestor");
      if (parent == kNoPage) break;
    }
    for (Page page : path) is_rooted[page] = true;
  }
}

// Each page of the tree is what its parent and tokens find: so its hash is right and no other page equals it.
void check_found(const PrefixTree& tree) {
  for (std::size_t page = 0; page < tree.parents.size(); ++page) {
    const std::uint64_t hash = tree.contains(page) ? tree.hash(tree.parents[page], tree.tokens(page)) : 0;
    require(tree.hashes[page] == hash, page, "has a hash that its parent and tokens do not give");
    if (!tree.contains(page)) continue;
    require(tree.find(tree.parents[page], tree.tokens(page)) == static_cast<Page>(page), page,
            "has an equal in the tree");
  }
}

void check_children(const PoolState& state) {
  std::vector<std::int64_t> num_children(size_of(state), 0), num_held_children(size_of(state), 0);
  for (Page page = 0; page < size_of(state); ++page) {
    const Page parent = state.tree.parents[page];
    if (parent < 0) continue;
    ++num_children[parent];
    num_held_children[parent] += state.is_held(page) ? 1 : 0;
  }
  for (Page page = 0; page < size_of(state); ++page) {
    require(state.tree.num_children[page] == num_children[page], page, "has a wrong number of children");
    require(state.num_held_children[page] == num_held_children[page], page,
            "has a wrong number of held children");
  }
}

void check_cached(const PoolState& state, const std::vector<Page>& cached_pages) {
  for (Page page : state.free_pages) require(!state.tree.contains(page), page, "is free and published");
  std::vector<bool> is_before(size_of(state), false);
  for (Page page : cached_pages) {
    require(state.tree.contains(page), page, "is cached but not published");
    const Page parent = state.tree.parents[page];
    require(parent == kNoPage || !is_before[parent], page, "would be evicted after its parent");
    is_before[page] = true;
  }
}

}  // namespace

void check_state(const PoolState& state) {
  const std::vector<Page> cached_pages = walk_cached(state.cached);
  check_parents(state.tree);
  check_buckets(state.tree);
  check_found(state.tree);
  check_children(state);
  std::vector<std::int64_t> holders = state.ref_counts;
  for (std::size_t page = 0; page < holders.size(); ++page) {
    if (holders[page] >= 0) holders[page] += state.num_held_children[page];
  }
  check_pages(state.free_pages, holders, cached_pages);
  check_cached(state, cached_pages);
}

void check_pages(const std::vector<Page>& free_pages, const std::vector<std::int64_t>& holders,
                 const std::vector<Page>& cached_pages) {
  std::vector<const char*> list(holders.size(), nullptr);
  const auto enter = [&](Page page, const char* name) {
    if (!exists(page, holders.size()))
      corrupt(page, std::string("is on the ") + name + " list but does not exist");
    if (list[page] == name) corrupt(page, std::string("is on the ") + name + " list twice");
    require(list[page] == nullptr, page, "is both free and cached");
    list[page] = name;
  };
  const char *free = "free", *cached = "cached";
  for (Page page : free_pages) enter(page, free);
  for (Page page : cached_pages) enter(page, cached);
  for (std::size_t page = 0; page < holders.size(); ++page) {
    const std::string count = std::to_string(holders[page]);
    if (holders[page] < 0) corrupt(page, "has " + count + " references");
    if (holders[page] > 0 && list[page])
      corrupt(page, "is on the " + std::string(list[page]) + " list with " + count + " references");
    if (holders[page] == 0 && !list[page]) corrupt(page, "has no references and is on no list");
  }
}

}  // namespace innervoice
