#include "innervoice/source.h"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/define.h"
#include "bindings/import.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

void fill_normals_of_tensors(ThreadTeam& team, const py::object& seed, std::int64_t stream,
                             const py::object& first, const py::object& out, const IsaName& isa) {
  const Import seeds("seed", seed), firsts("first", first), to("out", out);
  Size B("B"), F("F"), S("S"), four("4");
  four.bind(4);
  const auto* key = match<const std::int64_t>("seed", seeds.argument(), {B});
  const auto* counter = match<const std::int64_t>("first", firsts.argument(), {B, F});
  float* y = match<float>("out", to.argument(), {B, S, F, four});
  const py::gil_scoped_release release;
  fill_normals(team, numerics_of(false, isa).isa, key, stream, counter, B.value(), F.value(), S.value(), y);
}

void source_of_tensors(ThreadTeam& team, const py::object& f0, const py::object& cycles, const py::object& n,
                       const py::object& phases, const py::object& noise, const py::object& weight,
                       float bias, double sample_rate, std::int64_t frame_len, float amplitude, float sigma,
                       double voiced_above, const py::object& out, const py::object& cycles_after,
                       const IsaName& isa) {
  if (frame_len < 1)
    throw std::invalid_argument("frame_len is " + std::to_string(frame_len) + ", expected 1 or more");
  const Import pitch("f0", f0), before("cycles", cycles), lengths("n", n), weights("weight", weight),
      to("out", out);
  const Import after("cycles_after", cycles_after);
  std::optional<Import> phase, random;
  Size B("B"), T("T"), H("H"), L("L T");
  SourceCall call{};
  call.f0 = match<const double>("f0", pitch.argument(), {B, T});
  L.bind(T.value() * frame_len);
  call.cycles = match<const double>("cycles", before.argument(), {B});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.weight = match<const float>("weight", weights.argument(), {H});
  if (!phases.is_none()) {
    call.phases = match<const float>("phases", phase.emplace("phases", phases).argument(), {B, H});
  }
  if (!noise.is_none())
    call.noise = match<const float>("noise", random.emplace("noise", noise).argument(), {B, H, L});
  call.y = match<float>("out", to.argument(), {B, L});
  call.cycles_after = match<double>("cycles_after", after.argument(), {B});
  call.bias = bias;
  call.amplitude = amplitude;
  call.sigma = sigma;
  call.sample_rate = sample_rate;
  call.voiced_above = voiced_above;
  call.rows = B.value();
  call.frames = T.value();
  call.harmonics = H.value();
  call.frame_len = frame_len;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    if (call.n[row] < 0 || call.n[row] > call.frames) {
      throw std::invalid_argument("n: row " + std::to_string(row) + " has length " +
                                  std::to_string(call.n[row]) + ", expected 0 to " +
                                  std::to_string(call.frames));
    }
  }
  const py::gil_scoped_release release;
  stream_source(team, numerics_of(false, isa).isa, call);
}

}  // namespace

void define_source(py::module_& m) {
  m.def("fill_normals", &fill_normals_of_tensors, py::arg("team"), py::arg("seed"), py::arg("stream"),
        py::arg("first"), py::arg("out"), py::arg("isa") = py::none());
  m.def("stream_source", &source_of_tensors, py::arg("team"), py::arg("f0"), py::arg("cycles"), py::arg("n"),
        py::arg("phases"), py::arg("noise"), py::arg("weight"), py::arg("bias"), py::arg("sample_rate"),
        py::arg("frame_len"), py::arg("amplitude"), py::arg("sigma"), py::arg("voiced_above"), py::arg("out"),
        py::arg("cycles_after"), py::arg("isa") = py::none());
}

}  // namespace innervoice
