// Python's view of the native code. The only file that knows Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "innervoice/dlpack.h"
#include "innervoice/page_pool.h"
#include "innervoice/slots.h"
#include "innervoice/tensor_view.h"

namespace py = pybind11;

namespace innervoice {
namespace {

// Holds a capsule's tensor for the length of a call; the producer gets it back at the end.
class Import {
 public:
  Import(const char* name, const py::object& tensor) {
    if (!py::hasattr(tensor, "__dlpack__")) {
      throw py::type_error(std::string(name) + ": expected a tensor or an array, got " +
                           Py_TYPE(tensor.ptr())->tp_name);
    }
    const py::object capsule = request(tensor);
    if (!take<dlpack::ManagedTensorVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned", versioned_) &&
        !take<dlpack::ManagedTensor>(capsule, "dltensor", "used_dltensor", plain_)) {
      throw py::type_error(std::string(name) + ": __dlpack__ returned no unused DLPack capsule");
    }
    if (versioned_ != nullptr && versioned_->version.major != dlpack::kMajorVersion) {
      const std::string version = std::to_string(versioned_->version.major);
      give_back(versioned_);
      throw py::value_error(std::string(name) + ": DLPack version " + version + " is not known, only version 1");
    }
  }

  ~Import() {
    give_back(versioned_);
    give_back(plain_);
  }

  Import(const Import&) = delete;
  Import& operator=(const Import&) = delete;

  Argument argument() const {
    if (versioned_ != nullptr) return {versioned_->tensor, (versioned_->flags & dlpack::kReadOnly) != 0};
    return {plain_->tensor, false};
  }

 private:
  // Producers older than DLPack 1.0 do not know max_version.
  static py::object request(const py::object& tensor) {
    const py::object dlpack = tensor.attr("__dlpack__");
    try {
      return dlpack(py::arg("max_version") = py::make_tuple(dlpack::kMajorVersion, 0));
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return dlpack();
  }

  template <typename Managed>
  static bool take(const py::object& capsule, const char* name, const char* used_name, Managed*& managed) {
    if (PyCapsule_IsValid(capsule.ptr(), name) == 0) return false;
    managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
    PyCapsule_SetName(capsule.ptr(), used_name);
    return true;
  }

  template <typename Managed>
  static void give_back(Managed* managed) {
    if (managed != nullptr && managed->deleter != nullptr) managed->deleter(managed);
  }

  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
  dlpack::ManagedTensor* plain_ = nullptr;
};

void fill_slots_of_tensors(const py::object& page_table, const py::object& query_start, const py::object& context_len,
                           std::int64_t page_size, const py::object& out) {
  const Import table("page_table", page_table), start("query_start", query_start), length("context_len", context_len);
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

std::string repr(const PagePool& pool) {
  return "PagePool(num_pages=" + std::to_string(pool.num_pages()) + ", num_free=" + std::to_string(pool.num_free()) +
         ")";
}

}  // namespace

// std::invalid_argument becomes ValueError, std::out_of_range IndexError and std::logic_error RuntimeError, as pybind11
// has it.
PYBIND11_MODULE(_C, m) {
  m.doc() = "Native parts of innervoice. Docstrings and types: _C.pyi.";
  py::register_exception<OutOfPages>(m, "OutOfPages", PyExc_RuntimeError);
  py::class_<PagePool>(m, "PagePool")
      .def(py::init<std::int64_t>(), py::arg("num_pages"))
      .def("allocate", &PagePool::allocate, py::arg("count"))
      .def("retain", &PagePool::retain, py::arg("pages"))
      .def("free", &PagePool::free, py::arg("pages"))
      .def("ref_count", &PagePool::ref_count, py::arg("page"))
      .def("check_integrity", &PagePool::check_integrity)
      .def_property_readonly("num_pages", &PagePool::num_pages)
      .def_property_readonly("num_free", &PagePool::num_free)
      .def_property_readonly("free_pages", &PagePool::free_pages)
      .def_property_readonly("ref_counts", &PagePool::ref_counts)
      .def("__repr__", &repr);
  m.def("check_pages", &check_pages, py::arg("free_pages"), py::arg("ref_counts"));
  m.def("fill_slots", &fill_slots_of_tensors, py::arg("page_table"), py::arg("query_start"), py::arg("context_len"),
        py::arg("page_size"), py::arg("out"));
}

}  // namespace innervoice
