// Checks a tensor against a pattern that reads like a shape comment, and hands out its elements:
//
//   Size B("B"), N("N");
//   const int32_t* table = match<const int32_t>("page_table", page_table, {B, N});
//   const int32_t* start = match<const int32_t>("query_start", query_start, {B + 1});
//
// A size is bound where it is first met and must agree from there on. Throws std::invalid_argument with what
// was expected and what came:
//   query_start: expected int32 [B + 1] with B = 2, got int32 [5]
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "innervoice/dlpack.h"

namespace innervoice {

// A tensor as it comes from outside, not checked yet.
struct Argument {
  dlpack::Tensor tensor;
  bool read_only;
};

// A named size, unknown until a tensor binds it.
class Size {
 public:
  explicit Size(const char* name) : name_(name) {}
  Size(const Size&) = delete;
  Size& operator=(const Size&) = delete;

  const char* name() const { return name_; }
  bool is_bound() const { return value_ >= 0; }
  std::int64_t value() const { return value_; }
  void bind(std::int64_t value) { value_ = value; }

 private:
  const char* name_;
  std::int64_t value_ = -1;
};

// One place of a pattern: a named size plus a constant.
struct SizeTerm {
  SizeTerm(Size& size, std::int64_t plus = 0) : size(&size), plus(plus) {}

  Size* size;
  std::int64_t plus;
};

inline SizeTerm operator+(Size& size, std::int64_t plus) { return {size, plus}; }

using Pattern = std::initializer_list<SizeTerm>;

// Elements of 16 bits that C++ has no type for.
struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <typename T>
constexpr dlpack::DataType dtype_of() {
  if constexpr (std::is_same_v<T, Bfloat16>) return {dlpack::kBfloat, 16, 1};
  if constexpr (std::is_same_v<T, Float16>) return {dlpack::kFloat, 16, 1};
  constexpr auto code = std::is_floating_point_v<T> ? dlpack::kFloat
                        : std::is_same_v<T, bool>   ? dlpack::kBool
                        : std::is_signed_v<T>       ? dlpack::kInt
                                                    : dlpack::kUInt;
  return {code, 8 * sizeof(T), 1};
}

// The checks behind match(): dtype, rank, sizes, device, density, and whether it may be written. Binds sizes
// only when all hold.
void check_tensor(const char* name, const Argument& argument, Pattern pattern, dlpack::DataType dtype,
                  bool writable);

// The argument's elements, dense and row-major in host memory; T is const for inputs. Throws
// std::invalid_argument.
template <typename T>
T* match(const char* name, const Argument& argument, Pattern pattern) {
  check_tensor(name, argument, pattern, dtype_of<std::remove_const_t<T>>(), !std::is_const_v<T>);
  char* bytes = static_cast<char*>(argument.tensor.data);
  return reinterpret_cast<T*>(bytes == nullptr ? nullptr : bytes + argument.tensor.byte_offset);
}

}  // namespace innervoice
