// Tensors of Python's side for the length of a call, over DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <unordered_map>

#include "innervoice/dlpack.h"
#include "innervoice/tensor_view.h"

namespace innervoice {

namespace py = pybind11;

// How long a tensor is wanted: for the length of a call, whose arguments hold the object, or for as long as
// the import lives, which then holds it.
enum class Hold { kCall, kLong };

// A tensor of Python's: for a call through its type's C functions where it has them, else by a capsule, which
// the producer gets back at the end.
class Import {
 public:
  Import(const char* name, const py::object& tensor, Hold hold = Hold::kCall) {
    const dlpack::ExchangeApi* api = hold == Hold::kCall ? exchange_api(Py_TYPE(tensor.ptr())) : nullptr;
    if (api != nullptr) {
      if (api->tensor_from_object(tensor.ptr(), &direct_) != 0) throw py::error_already_set();
      return;
    }
    if (!py::hasattr(tensor, "__dlpack__")) {
      throw py::type_error(std::string(name) + ": expected a tensor or an array, got " +
                           Py_TYPE(tensor.ptr())->tp_name);
    }
    const py::object capsule = request(tensor);
    if (!take<dlpack::ManagedTensorVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned",
                                              versioned_) &&
        !take<dlpack::ManagedTensor>(capsule, "dltensor", "used_dltensor", plain_)) {
      throw py::type_error(std::string(name) + ": __dlpack__ returned no unused DLPack capsule");
    }
    if (versioned_ != nullptr && versioned_->version.major != dlpack::kMajorVersion) {
      const std::string version = std::to_string(versioned_->version.major);
      give_back(versioned_);
      throw py::value_error(std::string(name) + ": DLPack version " + version +
                            " is not known, only version 1");
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
    return {plain_ != nullptr ? plain_->tensor : direct_, false};
  }

 private:
  // A type's functions, null where it has none of version 1. Types are asked once and kept. The interpreter's
  // lock is held.
  static const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    static auto* const known = new std::unordered_map<PyTypeObject*, const dlpack::ExchangeApi*>();
    const auto found = known->find(type);
    if (found != known->end()) return found->second;
    const dlpack::ExchangeApi* api = nullptr;
    const py::handle handle(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") != 0) {
      api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
      while (api != nullptr && api->version.major != dlpack::kMajorVersion) api = api->previous;
      if (api != nullptr && api->tensor_from_object == nullptr) api = nullptr;
    }
    handle.inc_ref();
    known->emplace(type, api);
    return api;
  }

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

  dlpack::Tensor direct_{};
  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
  dlpack::ManagedTensor* plain_ = nullptr;
};

}  // namespace innervoice
