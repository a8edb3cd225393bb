#include "bindings/cpu.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/decoder.h"
#include "bindings/weight.h"
#include "innervoice/gemm.h"
#include "innervoice/isa.h"
#include "innervoice/thread_team.h"

namespace innervoice {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512}) {
    if (!is_available(isa)) continue;
    names.insert(isa > best_isa() ? names.begin() : names.end(), name_of(isa));
  }
  return names;
}

Isa isa_or_best(const std::optional<std::string>& name) { return name ? isa_named(*name) : best_isa(); }

void gemm_of_tensors(ThreadTeam& team, const py::object& x, const HeldWeight& weight, const py::object& out,
                     const py::object& bias, const std::optional<std::string>& isa) {
  const Import x_import("x", x), out_import("out", out);
  const Weight& w = weight.view();
  Size M("M"), N("N"), K("K");
  N.bind(w.rows);
  K.bind(w.columns);
  const auto* from = match<const float>("x", x_import.argument(), {M, K});
  auto* to = match<float>("out", out_import.argument(), {M, N});
  std::optional<Import> bias_import;
  const float* added = nullptr;
  if (!bias.is_none()) added = match<const float>("bias", bias_import.emplace("bias", bias).argument(), {N});
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  gemm(team, chosen, from, w.columns, M.value(), w, added, to, w.rows);
}

void product_of_tensors(const py::object& x, const HeldWeight& weight, const py::object& out,
                        const std::optional<std::string>& isa) {
  const Import x_import("x", x), out_import("out", out);
  const Weight& w = weight.view();
  Size M("M"), N("N"), K("K");
  N.bind(w.rows);
  K.bind(w.columns);
  const auto* from = match<const float>("x", x_import.argument(), {M, K});
  auto* to = match<float>("out", out_import.argument(), {M, N});
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  product(chosen, from, w.columns, M.value(), w, to, w.rows);
}

}  // namespace

void define_cpu(py::module_& m) {
  m.def("available_isas", &available_isas);
  m.def("num_usable_cores", &num_usable_cores);
  py::class_<ThreadTeam, std::shared_ptr<ThreadTeam>>(m, "ThreadTeam")
      .def(py::init<int, bool, int>(), py::arg("num_threads") = 0, py::arg("pin") = false, py::arg("spin_us") = 50)
      .def_property_readonly("num_threads", &ThreadTeam::num_threads);
  py::class_<HeldWeight>(m, "Weight")
      .def(py::init<const py::object&, const py::object&, const py::object&, std::int64_t, std::int64_t>(),
           py::arg("data"), py::arg("scale") = py::none(), py::arg("minimum") = py::none(), py::arg("columns") = 0,
           py::arg("group") = 0)
      .def_property_readonly(
          "shape", [](const HeldWeight& held) { return std::make_pair(held.view().rows, held.view().columns); });
  m.def("gemm", &gemm_of_tensors, py::arg("team"), py::arg("x"), py::arg("weight"), py::arg("out"),
        py::arg("bias") = py::none(), py::arg("isa") = py::none());
  m.def("product", &product_of_tensors, py::arg("x"), py::arg("weight"), py::arg("out"), py::arg("isa") = py::none());
  define_decoder(m);
}

}  // namespace innervoice
