#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/define.h"
#include "bindings/import.h"
#include "innervoice/page_pool.h"
#include "innervoice/pool_state.h"
#include "innervoice/slots.h"
#include "innervoice/tensor_view.h"

namespace innervoice {
namespace {

void fill_slots_of_tensors(const py::object& page_table, const py::object& query_start,
                           const py::object& context_len, std::int64_t page_size, const py::object& out) {
  const Import table("page_table", page_table), start("query_start", query_start),
      length("context_len", context_len);
  const Import slots("out", out);
  Size B("B"), N("N"), T("T");
  RaggedBatch batch;
  batch.page_table = match<const std::int32_t>("page_table", table.argument(), {B, N});
  batch.query_start = match<const std::int32_t>("query_start", start.argument(), {B + 1});
  batch.context_len = match<const std::int32_t>("context_len", length.argument(), {B});
  std::int64_t* target = match<std::int64_t>("out", slots.argument(), {T});
  batch.num_rows = B.value();
  batch.num_columns = N.value();
  batch.num_tokens = T.value();
  fill_slots(batch, page_size, target);
}

std::vector<Page> match_tensors(PagePool& pool, const py::object& ids, const py::object& keys) {
  const Import ids_import("ids", ids), keys_import("keys", keys);
  Size T("T");
  const auto* first_id = match<const std::int64_t>("ids", ids_import.argument(), {T});
  const auto* first_key = match<const std::int64_t>("keys", keys_import.argument(), {T});
  return pool.match({first_id, first_key}, T.value());
}

Page publish_tensors(PagePool& pool, Page parent, Page page, const py::object& ids, const py::object& keys) {
  const Import ids_import("ids", ids), keys_import("keys", keys);
  Size S("page_size");
  S.bind(pool.page_size());
  const auto* first_id = match<const std::int64_t>("ids", ids_import.argument(), {S});
  const auto* first_key = match<const std::int64_t>("keys", keys_import.argument(), {S});
  return pool.publish(parent, page, {first_id, first_key});
}

std::string repr(const PagePool& pool) {
  const std::pair<const char*, std::int64_t> numbers[] = {{"(num_pages=", pool.num_pages()},
                                                          {", page_size=", pool.page_size()},
                                                          {", num_free=", pool.num_free()},
                                                          {", num_cached=", pool.num_cached()}};
  std::string text = "PagePool";
  for (const auto& [name, value] : numbers) text += name + std::to_string(value);
  return text + ")";
}

// An array of a state that Python may replace by another one of its size.
template <typename Owner, typename Value>
void def_array(py::class_<Owner>& type, const char* name, std::vector<Value> Owner::* member) {
  type.def_property(
      name, [member](const Owner& owner) { return owner.*member; },
      [name, member](Owner& owner, std::vector<Value> values) {
        if (values.size() != (owner.*member).size()) {
          throw py::value_error(std::string(name) + ": expected " + std::to_string((owner.*member).size()) +
                                " values, got " + std::to_string(values.size()));
        }
        owner.*member = std::move(values);
      });
}

void define_state(py::module_& m) {
  py::class_<PageList> list(m, "PageList");
  def_array(list, "older", &PageList::older);
  def_array(list, "newer", &PageList::newer);
  list.def_readwrite("oldest", &PageList::oldest)
      .def_readwrite("newest", &PageList::newest)
      .def_readwrite("size", &PageList::size);
  py::class_<PrefixTree> tree(m, "PrefixTree");
  def_array(tree, "parents", &PrefixTree::parents);
  def_array(tree, "num_children", &PrefixTree::num_children);
  def_array(tree, "hashes", &PrefixTree::hashes);
  def_array(tree, "buckets", &PrefixTree::buckets);
  def_array(tree, "next_in_bucket", &PrefixTree::next_in_bucket);
  def_array(tree, "contents", &PrefixTree::contents);
  py::class_<PoolState> state(m, "PoolState");
  def_array(state, "ref_counts", &PoolState::ref_counts);
  def_array(state, "num_held_children", &PoolState::num_held_children);
  state.def_readwrite("free_pages", &PoolState::free_pages)
      .def_readwrite("tree", &PoolState::tree)
      .def_readwrite("cached", &PoolState::cached);
  m.def("check_state", &check_state, py::arg("state"));
  m.def("check_pages", &check_pages, py::arg("free_pages"), py::arg("holders"),
        py::arg("cached_pages") = std::vector<Page>());
}

void define_pages(py::module_& m) {
  py::register_exception<OutOfPages>(m, "OutOfPages", PyExc_RuntimeError);
  py::class_<PoolCounters>(m, "PoolCounters")
      .def_readonly("hits", &PoolCounters::hits)
      .def_readonly("misses", &PoolCounters::misses)
      .def_readonly("published", &PoolCounters::published)
      .def_readonly("merged", &PoolCounters::merged)
      .def_readonly("evictions", &PoolCounters::evictions);
  py::class_<PagePool>(m, "PagePool")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t>(), py::arg("num_pages"),
           py::arg("page_size") = 16, py::arg("hash_bits") = 64)
      .def("allocate", &PagePool::allocate, py::arg("count"))
      .def("retain", &PagePool::retain, py::arg("pages"))
      .def("free", &PagePool::free, py::arg("pages"))
      .def("publish", &publish_tensors, py::arg("parent"), py::arg("page"), py::arg("ids"), py::arg("keys"))
      .def("match", &match_tensors, py::arg("ids"), py::arg("keys"))
      .def("unpublish", &PagePool::unpublish, py::arg("page"))
      .def("ref_count", &PagePool::ref_count, py::arg("page"))
      .def("is_shared", &PagePool::is_shared, py::arg("page"))
      .def("is_published", &PagePool::is_published, py::arg("page"))
      .def("num_children", &PagePool::num_children, py::arg("page"))
      .def("check_integrity", &PagePool::check_integrity)
      .def("state", &PagePool::state, py::return_value_policy::copy)
      .def_property_readonly("page_size", &PagePool::page_size)
      .def_property_readonly("num_pages", &PagePool::num_pages)
      .def_property_readonly("num_free", &PagePool::num_free)
      .def_property_readonly("num_cached", &PagePool::num_cached)
      .def_property_readonly("num_available", &PagePool::num_available)
      .def_property_readonly("counters", &PagePool::counters, py::return_value_policy::copy)
      .def_property_readonly("free_pages", [](const PagePool& pool) { return pool.state().free_pages; })
      .def_property_readonly("ref_counts", [](const PagePool& pool) { return pool.state().ref_counts; })
      .def("__repr__", &repr);
}

}  // namespace

void define_pool(py::module_& m) {
  define_state(m);
  define_pages(m);
  m.def("fill_slots", &fill_slots_of_tensors, py::arg("page_table"), py::arg("query_start"),
        py::arg("context_len"), py::arg("page_size"), py::arg("out"));
}

}  // namespace innervoice
