#include "bindings/weight.h"

#include <stdexcept>
#include <string>

namespace innervoice {

HeldWeight::HeldWeight(const py::object& data, const py::object& scale, const py::object& minimum,
                       std::int64_t columns, std::int64_t group, std::int64_t rows) {
  const Argument given = hold("data", data).argument();
  view_.columns = columns;
  view_.group = group;
  Size N("N"), K("K");
  const dlpack::DataType dtype = given.tensor.dtype;
  const bool is_float = dtype.code == dlpack::kFloat || dtype.code == dlpack::kBfloat;
  if (is_float && !scale.is_none()) throw std::invalid_argument("scale: a float weight has none");
  if (!is_float && scale.is_none()) throw std::invalid_argument("scale: a quantised weight needs its scales");
  if (rows > 0) {
    view_.rows = rows;
    view_.kind = dtype.code == dlpack::kUInt ? WeightKind::kInt4 : WeightKind::kInt8;
    hold_lanes(given, scale, minimum);
    return;
  }
  if (dtype.code == dlpack::kUInt) {
    hold_int4(given, scale, minimum);
    return;
  }
  if (!minimum.is_none()) throw std::invalid_argument("minimum: only int4 weights have one");
  if (dtype.code == dlpack::kInt) {
    view_.kind = WeightKind::kInt8;
    view_.data = match<const std::int8_t>("data", given, {N, K});
    view_.scale = match<const float>("scale", hold("scale", scale).argument(), {N});
  } else if (dtype.code == dlpack::kBfloat) {
    view_.kind = WeightKind::kBfloat16;
    view_.data = match<const Bfloat16>("data", given, {N, K});
  } else {
    view_.kind = WeightKind::kFloat32;
    view_.data = match<const float>("data", given, {N, K});
  }
  view_.rows = N.value();
  view_.columns = K.value();
  view_.group = 0;
}

void HeldWeight::check_group() const {
  const std::int64_t group = view_.group;
  if ((group != 32 && group != 64 && group != 128) || view_.columns < 1) {
    throw std::invalid_argument(
        "an int4 weight has groups of 32, 64 or 128 columns, and 1 column or more: got groups of " +
        std::to_string(group) + " and " + std::to_string(view_.columns) + " columns");
  }
}

void HeldWeight::hold_lanes(const Argument& data, const py::object& scale, const py::object& minimum) {
  view_.is_laned = true;
  if (view_.columns < 1) throw std::invalid_argument("columns: a weight in lanes has 1 or more");
  Size panels("ceil(N / 16)"), steps("steps"), bytes("64"), lanes("16");
  panels.bind(view_.num_panels());
  steps.bind(view_.panel_bytes() / 64);
  bytes.bind(64);
  lanes.bind(kLaneRows);
  if (view_.kind == WeightKind::kInt8) {
    if (!minimum.is_none()) throw std::invalid_argument("minimum: only int4 weights have one");
    view_.group = 0;
    view_.data = match<const std::int8_t>("data", data, {panels, steps, bytes});
    Size rows("16 panels");
    rows.bind(view_.num_panels() * kLaneRows);
    view_.scale = match<const float>("scale", hold("scale", scale).argument(), {rows});
    return;
  }
  check_group();
  Size groups("ceil(K / group)");
  groups.bind(view_.num_groups());
  view_.data = match<const std::uint8_t>("data", data, {panels, steps, bytes});
  const auto halves = [&](const char* name, const py::object& tensor) {
    return &match<const Float16>(name, hold(name, tensor).argument(), {panels, groups, lanes})->bits;
  };
  view_.group_scale = halves("scale", scale);
  if (!minimum.is_none()) view_.group_minimum = halves("minimum", minimum);
}

void HeldWeight::hold_int4(const Argument& data, const py::object& scale, const py::object& minimum) {
  check_group();
  view_.kind = WeightKind::kInt4;
  Size N("N"), bytes("ceil(K / 2)"), groups("ceil(K / group)");
  bytes.bind((view_.columns + 1) / 2);
  groups.bind(view_.num_groups());
  view_.data = match<const std::uint8_t>("data", data, {N, bytes});
  view_.group_scale = &match<const Float16>("scale", hold("scale", scale).argument(), {N, groups})->bits;
  if (!minimum.is_none()) {
    view_.group_minimum =
        &match<const Float16>("minimum", hold("minimum", minimum).argument(), {N, groups})->bits;
  }
  view_.rows = N.value();
}

const Import& HeldWeight::hold(const char* name, const py::object& tensor) {
  return *held_.emplace_back(std::make_unique<Import>(name, tensor, Hold::kLong));
}

}  // namespace innervoice
