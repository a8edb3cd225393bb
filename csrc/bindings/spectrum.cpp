#include "innervoice/spectrum.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "bindings/define.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

std::unique_ptr<RealTransform> transform_of(std::int64_t size, const IsaName& isa) {
  if (size < 4 || size % 2 != 0) {
    throw std::invalid_argument("size is " + std::to_string(size) + ", expected an even number of 4 or more");
  }
  return std::make_unique<RealTransform>(numerics_of(false, isa).isa, size);
}

void need_hop(const RealTransform& transform, std::int64_t hop) {
  if (hop < 1 || hop > transform.size()) {
    throw std::invalid_argument("hop is " + std::to_string(hop) + ", expected 1 to " +
                                std::to_string(transform.size()));
  }
}

void run_stft(const RealTransform& transform, ThreadTeam& team, const py::object& x, const py::object& state,
              const py::object& n, const py::object& window, std::int64_t hop, const py::object& start,
              const py::object& end, const py::object& out, const py::object& state_after) {
  need_hop(transform, hop);
  const Floats from("x", x), past("state", state), shape("window", window), to("out", out);
  const Floats after("state_after", state_after);
  const Import lengths("n", n), starts("start", start), ends("end", end);
  Size B("B"), T("T"), N("N"), kept("N - hop"), rows("N + 2"), frames("T / hop");
  N.bind(transform.size());
  kept.bind(transform.size() - hop);
  rows.bind(transform.size() + 2);
  StftCall call{};
  call.x = from.match({B, T});
  call.state = past.match({B, kept});
  call.window = shape.match({N});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.start = match<const std::int64_t>("start", starts.argument(), {B});
  call.end = match<const std::int64_t>("end", ends.argument(), {B});
  frames.bind(T.value() / hop);
  call.y = to.match_writable({B, rows, frames});
  call.state_after = after.match_writable({B, kept});
  call.rows = B.value();
  call.columns = T.value();
  call.hop = hop;
  need_lengths(call.n, call.rows, call.columns);
  const py::gil_scoped_release release;
  transform.stft(team, call);
}

void run_istft(const RealTransform& transform, ThreadTeam& team, const py::object& real,
               const py::object& imag, const std::optional<py::object>& state, const py::object& n,
               const py::object& window, std::int64_t hop, const py::object& start, const py::object& end,
               std::int64_t first, const py::object& out, const std::optional<py::object>& state_after) {
  need_hop(transform, hop);
  need(state.has_value() == state_after.has_value(), "state and state_after: both or none");
  const Floats reals("real", real), imags("imag", imag), shape("window", window), to("out", out);
  const Import lengths("n", n), starts("start", start), ends("end", end);
  std::optional<Floats> before, after;
  Size B("B"), F("F"), T("T"), N("N"), kept("N - hop"), columns("columns");
  N.bind(transform.size());
  F.bind(transform.bins());
  kept.bind(transform.size() - hop);
  IstftCall call{};
  call.real = reals.match({B, F, T});
  call.imag = imags.match({B, F, T});
  call.window = shape.match({N});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.start = match<const std::int64_t>("start", starts.argument(), {B});
  call.end = match<const std::int64_t>("end", ends.argument(), {B});
  call.y = to.match_writable({B, columns});
  if (state) {
    call.state = before.emplace("state", *state).match({B, kept});
    call.state_after = after.emplace("state_after", *state_after).match_writable({B, kept});
  }
  call.rows = B.value();
  call.frames = T.value();
  call.hop = hop;
  call.first = first;
  call.columns = columns.value();
  need(first >= 0, "first: a column not below 0");
  need_lengths(call.n, call.rows, call.frames);
  const py::gil_scoped_release release;
  transform.istft(team, call);
}

void run_log_mel(const RealTransform& transform, ThreadTeam& team, const py::object& samples,
                 const py::object& filters, std::int64_t hop, const py::object& out) {
  need_hop(transform, hop);
  const Floats from("samples", samples), bank("filters", filters), to("out", out);
  Size B("B"), W("W"), N("N"), F("F"), M("M"), frames("(W - N) / hop + 1");
  N.bind(transform.size());
  F.bind(transform.bins());
  LogMelCall call{};
  call.samples = from.match({B, W});
  call.filters = bank.match({F, M});
  if (W.value() < N.value()) {
    throw std::invalid_argument("samples: " + std::to_string(W.value()) +
                                " a row, expected at least a frame of " + std::to_string(N.value()));
  }
  frames.bind((W.value() - N.value()) / hop + 1);
  call.y = to.match_writable({B, M, frames});
  call.rows = B.value();
  call.columns = W.value();
  call.hop = hop;
  call.mels = M.value();
  const py::gil_scoped_release release;
  transform.log_mel(team, call);
}

}  // namespace

void define_spectrum(py::module_& m) {
  py::class_<RealTransform>(m, "RealTransform")
      .def(py::init(&transform_of), py::arg("size"), py::arg("isa") = py::none())
      .def("stft", &run_stft, py::arg("team"), py::arg("x"), py::arg("state"), py::arg("n"),
           py::arg("window"), py::arg("hop"), py::arg("start"), py::arg("end"), py::arg("out"),
           py::arg("state_after"))
      .def("istft", &run_istft, py::arg("team"), py::arg("real"), py::arg("imag"), py::arg("state"),
           py::arg("n"), py::arg("window"), py::arg("hop"), py::arg("start"), py::arg("end"),
           py::arg("first"), py::arg("out"), py::arg("state_after"))
      .def("log_mel", &run_log_mel, py::arg("team"), py::arg("samples"), py::arg("filters"), py::arg("hop"),
           py::arg("out"));
}

}  // namespace innervoice
