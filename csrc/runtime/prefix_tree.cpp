#include "innervoice/prefix_tree.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace innervoice {
namespace {

std::size_t power_of_two_from(std::int64_t count) {
  std::size_t size = 1;
  while (size < static_cast<std::size_t>(count)) size *= 2;
  return size;
}

std::uint64_t mask_of(std::int64_t bits) {
  if (bits < 0 || bits > 64) {
    throw std::invalid_argument("hash_bits is " + std::to_string(bits) + ": it must be 0 to 64");
  }
  return bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
}

std::int64_t positive(const char* name, std::int64_t value) {
  if (value < 1)
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                ": it must be 1 or more");
  return value;
}

// One step of multiply and shift: a bijection of `hash` for every `value`. The factor is 2^64 over the golden
// ratio.
std::uint64_t mixed(std::uint64_t hash, std::int64_t value) {
  hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 32);
}

}  // namespace

PrefixTree::PrefixTree(std::int64_t num_pages, std::int64_t page_size, std::int64_t hash_bits)
    : page_size(positive("page_size", page_size)),
      hash_mask(mask_of(hash_bits)),
      parents(num_pages, kOutside),
      num_children(num_pages, 0),
      hashes(num_pages, 0),
      buckets(power_of_two_from(num_pages), kNoPage),
      next_in_bucket(num_pages, kOutside),
      contents(num_pages * 2 * page_size) {}

Page PrefixTree::find(Page parent, PageTokens wanted) const {
  const std::uint64_t wanted_hash = hash(parent, wanted);
  for (Page page = buckets[bucket(wanted_hash)]; page != kNoPage; page = next_in_bucket[page]) {
    if (hashes[page] != wanted_hash || parents[page] != parent) continue;
    const PageTokens own = tokens(page);
    if (std::equal(own.ids, own.ids + page_size, wanted.ids) &&
        std::equal(own.keys, own.keys + page_size, wanted.keys)) {
      return page;
    }
  }
  return kOutside;
}

void PrefixTree::insert(Page page, Page parent, PageTokens tokens) {
  std::int64_t* content = &contents[page * 2 * page_size];
  std::copy_n(tokens.keys, page_size, std::copy_n(tokens.ids, page_size, content));
  hashes[page] = hash(parent, tokens);
  Page& first = buckets[bucket(hashes[page])];
  next_in_bucket[page] = first;
  first = page;
  parents[page] = parent;
  if (parent != kNoPage) ++num_children[parent];
}

void PrefixTree::remove(Page page) {
  Page* link = &buckets[bucket(hashes[page])];
  while (*link != page) link = &next_in_bucket[*link];
  *link = next_in_bucket[page];
  if (parents[page] != kNoPage) --num_children[parents[page]];
  next_in_bucket[page] = parents[page] = kOutside;
  hashes[page] = 0;
}

PageTokens PrefixTree::tokens(Page page) const {
  const std::int64_t* content = contents.data() + page * 2 * page_size;
  return {content, content + page_size};
}

std::uint64_t PrefixTree::hash(Page parent, PageTokens tokens) const {
  std::uint64_t hash = mixed(0, parent);
  for (std::int64_t index = 0; index < page_size; ++index)
    hash = mixed(mixed(hash, tokens.ids[index]), tokens.keys[index]);
  return hash & hash_mask;
}

}  // namespace innervoice
