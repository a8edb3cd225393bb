#include "innervoice/tensor_view.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace innervoice {
namespace {

std::string dtype_name(dlpack::DataType dtype) {
  std::string name;
  switch (dtype.code) {
    case dlpack::kInt: name = "int"; break;
    case dlpack::kUInt: name = "uint"; break;
    case dlpack::kFloat: name = "float"; break;
    case dlpack::kBfloat: name = "bfloat"; break;
    case dlpack::kComplex: name = "complex"; break;
    case dlpack::kBool: return "bool";
    default: name = "dtype code " + std::to_string(dtype.code) + " bits "; break;
  }
  name += std::to_string(dtype.bits);
  return dtype.lanes == 1 ? name : name + "x" + std::to_string(dtype.lanes);
}

std::string device_name(dlpack::Device device) {
  if (device.type == dlpack::kCUDA) return "cuda:" + std::to_string(device.id);
  return "DLPack device type " + std::to_string(device.type);
}

template <typename Items, typename ToString>
std::string bracketed(const Items& items, ToString to_string) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + to_string(item);
  return "[" + text + "]";
}

std::string numbers(const std::int64_t* values, std::int32_t count) {
  return bracketed(std::vector<std::int64_t>(values, values + count),
                   [](std::int64_t n) { return std::to_string(n); });
}

std::string describe(const dlpack::Tensor& tensor) {
  return dtype_name(tensor.dtype) + " " + numbers(tensor.shape, tensor.ndim);
}

// "int32 [B + 1] with B = 2": sizes bound by earlier tensors are told, since they are what a wrong size
// disagrees with.
std::string describe(Pattern pattern, dlpack::DataType dtype) {
  std::string text = dtype_name(dtype) + " " + bracketed(pattern, [](const SizeTerm& term) {
                       return term.size->name() + (term.plus == 0 ? "" : " + " + std::to_string(term.plus));
                     });
  std::string known;
  for (const SizeTerm& term : pattern) {
    if (!term.size->is_bound()) continue;
    known += (known.empty() ? " with " : ", ") + std::string(term.size->name()) + " = " +
             std::to_string(term.size->value());
  }
  return text + known;
}

bool same(dlpack::DataType a, dlpack::DataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

bool sizes_agree(const dlpack::Tensor& tensor, Pattern pattern) {
  if (tensor.ndim != static_cast<std::int32_t>(pattern.size())) return false;
  const std::int64_t* size = tensor.shape;
  for (const SizeTerm& term : pattern) {
    const std::int64_t value = *size++ - term.plus;
    if (value < 0 || (term.size->is_bound() && term.size->value() != value)) return false;
  }
  return true;
}

std::int64_t num_elements(const dlpack::Tensor& tensor) {
  std::int64_t count = 1;
  for (std::int32_t dim = 0; dim < tensor.ndim; ++dim) count *= tensor.shape[dim];
  return count;
}

// Strides of dimensions of size 1, and of a tensor without elements, say nothing.
bool is_dense(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr || num_elements(tensor) == 0) return true;
  std::int64_t expected = 1;
  for (std::int32_t dim = tensor.ndim; dim-- > 0;) {
    if (tensor.shape[dim] != 1 && tensor.strides[dim] != expected) return false;
    expected *= tensor.shape[dim];
  }
  return true;
}

}  // namespace

void check_tensor(const char* name, const Argument& argument, Pattern pattern, dlpack::DataType dtype,
                  bool writable) {
  const dlpack::Tensor& tensor = argument.tensor;
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got);
  };
  if (!same(tensor.dtype, dtype) || !sizes_agree(tensor, pattern))
    refuse(describe(pattern, dtype), describe(tensor));
  if (tensor.device.type != dlpack::kCPU && tensor.device.type != dlpack::kCUDAHost) {
    refuse("a tensor in host memory", "one on " + device_name(tensor.device));
  }
  if (!is_dense(tensor)) {
    refuse("contiguous " + describe(pattern, dtype),
           describe(tensor) + " with strides " + numbers(tensor.strides, tensor.ndim));
  }
  if (writable && argument.read_only) refuse("a tensor that can be written", "a read-only one");
  const std::int64_t* size = tensor.shape;
  for (const SizeTerm& term : pattern) term.size->bind(*size++ - term.plus);
}

}  // namespace innervoice
