#include "innervoice/stream_conv.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/define.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

std::unique_ptr<StreamConv> stream_conv_of(const py::object& weight, const py::object& bias,
                                           std::int64_t dilation, std::int64_t stride, std::int64_t up,
                                           float slope, const IsaName& isa) {
  const Floats floats("weight", weight);
  Size N("N"), taps("taps"), K("K");
  const float* data = floats.match({N, taps, K});
  need(N.value() > 0 && taps.value() > 0 && K.value() > 0 && dilation > 0 && stride > 0 && up > 0 &&
           K.value() % stride == 0 && N.value() % up == 0,
       "a convolution has weights [C' u, taps, s C], and a dilation, stride s and rate u above 0");
  return std::make_unique<StreamConv>(numerics_of(false, isa).isa, data, vector_of("bias", bias, N.value()),
                                      taps.value(), K.value(),
                                      StreamConv::Shape{dilation, stride, up, slope});
}

void run_stream_conv(const StreamConv& conv, ThreadTeam& team, const py::object& before, const py::object& x,
                     std::int64_t first, const std::optional<std::pair<py::object, py::object>>& bounds,
                     const py::object& out, const std::optional<std::pair<py::object, py::object>>& kept) {
  const Floats past("before", before), from("x", x), to("out", out);
  std::optional<Import> start, end, lengths;
  std::optional<Floats> after;
  Size B("B"), C("C"), P("P"), T("T"), N("C'"), O("O");
  C.bind(conv.channels());
  N.bind(conv.out_channels());
  StreamConvCall call{};
  call.before = past.match({B, C, P});
  call.x = from.match({B, C, T});
  call.y = to.match_writable({B, N, O});
  if (bounds) {
    call.start = match<const std::int64_t>("start", start.emplace("start", bounds->first).argument(), {B});
    call.end = match<const std::int64_t>("end", end.emplace("end", bounds->second).argument(), {B});
  }
  if (kept) {
    call.n = match<const std::int64_t>("n", lengths.emplace("n", kept->first).argument(), {B});
    call.after = after.emplace("after", kept->second).match_writable({B, C, P});
    need_lengths(call.n, B.value(), T.value());
  }
  need(first >= 0, "first: must not be below 0");
  call.rows = B.value();
  call.past = P.value();
  call.columns = T.value();
  call.first = first;
  call.out_columns = O.value();
  const py::gil_scoped_release release;
  conv.run(team, call);
}

std::unique_ptr<DoubleConv> double_conv_of(const py::object& weight, const py::object& bias,
                                           std::int64_t dilation, const IsaName& isa) {
  const Import weight_import("weight", weight), bias_import("bias", bias);
  Size N("N"), taps("taps"), K("K");
  const auto* data = match<const double>("weight", weight_import.argument(), {N, taps, K});
  const auto* added = match<const double>("bias", bias_import.argument(), {N});
  need(N.value() > 0 && taps.value() > 0 && K.value() > 0 && dilation > 0,
       "a convolution has columns, taps and channels, and a dilation above 0");
  return std::make_unique<DoubleConv>(numerics_of(false, isa).isa, data,
                                      std::vector<double>(added, added + N.value()), taps.value(), K.value(),
                                      dilation);
}

void run_double_conv(const DoubleConv& conv, ThreadTeam& team, const py::object& before, const py::object& x,
                     const std::optional<std::pair<py::object, py::object>>& bounds, const py::object& out,
                     const py::object& n, const py::object& after) {
  const Import past("before", before), from("x", x), to("out", out), lengths("n", n), kept("after", after);
  std::optional<Import> start, end;
  Size B("B"), C("C"), P("P"), T("T"), N("C'");
  C.bind(conv.channels());
  N.bind(conv.out_channels());
  P.bind(conv.reach());
  DoubleConvCall call{};
  call.before = match<const double>("before", past.argument(), {B, C, P});
  call.x = match<const double>("x", from.argument(), {B, C, T});
  call.y = match<double>("out", to.argument(), {B, N, T});
  if (bounds) {
    call.start = match<const std::int64_t>("start", start.emplace("start", bounds->first).argument(), {B});
    call.end = match<const std::int64_t>("end", end.emplace("end", bounds->second).argument(), {B});
  }
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.after = match<double>("after", kept.argument(), {B, C, P});
  call.rows = B.value();
  call.columns = T.value();
  need_lengths(call.n, call.rows, call.columns);
  const py::gil_scoped_release release;
  conv.run(team, call);
}

}  // namespace

void define_stream_conv(py::module_& m) {
  py::class_<StreamConv>(m, "StreamConv")
      .def(py::init(&stream_conv_of), py::arg("weight"), py::arg("bias"), py::arg("dilation") = 1,
           py::arg("stride") = 1, py::arg("up") = 1, py::arg("slope") = 1.0f, py::arg("isa") = py::none())
      .def("__call__", &run_stream_conv, py::arg("team"), py::arg("before"), py::arg("x"), py::arg("first"),
           py::arg("bounds"), py::arg("out"), py::arg("kept") = py::none());
  py::class_<DoubleConv>(m, "DoubleConv")
      .def(py::init(&double_conv_of), py::arg("weight"), py::arg("bias"), py::arg("dilation") = 1,
           py::arg("isa") = py::none())
      .def("__call__", &run_double_conv, py::arg("team"), py::arg("before"), py::arg("x"), py::arg("bounds"),
           py::arg("out"), py::arg("n"), py::arg("after"));
}

}  // namespace innervoice
