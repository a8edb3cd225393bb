// The part of the DLPack binary interface that a consumer needs. Layouts are fixed by
// https://dmlc.github.io/dlpack/latest/c_api.html.
#pragma once

#include <cstdint>

namespace innervoice::dlpack {

enum DeviceType : std::int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3 };

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major and dense
  std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

constexpr std::uint32_t kMajorVersion = 1;
constexpr std::uint64_t kReadOnly = 1;

// What a capsule named "dltensor_versioned" holds. Only `version`, `manager` and `deleter` may be read when
// the major version is unknown.
struct ManagedTensorVersioned {
  Version version;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// What the capsule "dlpack_exchange_api" of a type's __dlpack_c_exchange_api__ holds (DLPack 1.3): conversion
// in C, without a capsule a tensor. Later versions may come before it in `previous`' chain; functions are
// only ever added.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  // Of an object of that type, valid while its owner holds it unchanged. 0, or -1 with Python's error set.
  // May be null.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace innervoice::dlpack
