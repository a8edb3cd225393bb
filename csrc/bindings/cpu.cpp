#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/define.h"
#include "bindings/weight.h"
#include "innervoice/codebook.h"
#include "innervoice/experts.h"
#include "innervoice/gemm.h"
#include "innervoice/isa.h"
#include "innervoice/thread_team.h"

namespace innervoice {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::kPlain, Isa::kNeon, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512}) {
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
                        const std::optional<std::string>& isa, bool exact) {
  const Import x_import("x", x), out_import("out", out);
  const Weight& w = weight.view();
  Size M("M"), N("N"), K("K");
  N.bind(w.rows);
  K.bind(w.columns);
  const auto* from = match<const float>("x", x_import.argument(), {M, K});
  auto* to = match<float>("out", out_import.argument(), {M, N});
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  product(chosen, from, w.columns, M.value(), w, to, w.rows, exact);
}

void expert_ffn_of_tensors(ThreadTeam& team, const py::object& x, const HeldWeight& router,
                           const HeldWeight& gate_up, const HeldWeight& down, const py::object& out,
                           std::int64_t num_used, bool normalized, const std::optional<std::string>& isa,
                           bool exact) {
  const Import x_import("x", x), out_import("out", out);
  const ExpertLayer layer = {router.view(), gate_up.view(), down.view(), num_used, normalized};
  Size T("T"), D("D");
  D.bind(layer.router.columns);
  const auto* from = match<const float>("x", x_import.argument(), {T, D});
  auto* to = match<float>("out", out_import.argument(), {T, D});
  const std::int64_t E = layer.router.rows, F = layer.down.columns;
  if (layer.gate_up.rows != 2 * F * E || layer.gate_up.columns != D.value() ||
      layer.down.rows != E * D.value()) {
    throw std::invalid_argument("gate_up and down do not fit " + std::to_string(E) + " experts of [" +
                                std::to_string(D.value()) + " to " + std::to_string(F) + "]");
  }
  if (num_used < 1 || num_used > E) {
    throw std::invalid_argument("num_used is " + std::to_string(num_used) + ": use 1 to " +
                                std::to_string(E));
  }
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  expert_ffn(team, chosen, layer, from, T.value(), to, exact);
}

void nearest_code_of_tensors(ThreadTeam& team, const py::object& x, const HeldWeight& codes,
                             const py::object& ids, const std::optional<std::string>& isa) {
  const Import x_import("x", x), ids_import("ids", ids);
  const Weight& w = codes.view();
  Size M("M"), D("D");
  D.bind(w.columns);
  const auto* from = match<const float>("x", x_import.argument(), {M, D});
  auto* to = match<std::int64_t>("ids", ids_import.argument(), {M});
  if (w.rows == 0) throw std::invalid_argument("codes: a codebook has one code or more");
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  nearest_code(team, chosen, from, M.value(), w, to);
}

void sum_codes_of_tensors(ThreadTeam& team, const py::object& ids, const HeldWeight& codes,
                          const std::vector<std::int64_t>& sizes, const py::object& out,
                          const std::optional<std::string>& isa) {
  const Import ids_import("ids", ids), out_import("out", out);
  const Weight& w = codes.view();
  Size B("B"), K("K"), T("T"), G("G"), D("D");
  G.bind(static_cast<std::int64_t>(sizes.size()));
  D.bind(w.columns);
  const auto* from = match<const std::int64_t>("ids", ids_import.argument(), {B, K, T});
  auto* to = match<float>("out", out_import.argument(), {B, T, G, D});
  std::int64_t books = 0;
  for (const std::int64_t size : sizes) books += std::max<std::int64_t>(size, 0);
  if (K.value() == 0 || books != K.value() || w.rows % K.value() != 0 || w.rows == 0 ||
      *std::min_element(sizes.begin(), sizes.end()) < 1) {
    throw std::invalid_argument("sizes: expected groups of codebooks that are as many together as ids has, " +
                                std::to_string(K.value()) + ", and codes [K N, D]");
  }
  const std::int64_t each = w.rows / K.value();
  for (std::int64_t i = 0; i < B.value() * K.value() * T.value(); ++i) {
    if (from[i] < 0 || from[i] >= each) {
      throw std::invalid_argument("ids: " + std::to_string(from[i]) + " is not a code, expected 0 to " +
                                  std::to_string(each - 1));
    }
  }
  const Isa chosen = isa_or_best(isa);
  const py::gil_scoped_release release;
  sum_codes(team, chosen, from, B.value(), T.value(), w, each, sizes, to);
}

}  // namespace

void define_cpu(py::module_& m) {
  m.def("available_isas", &available_isas);
  m.def("num_usable_cores", &num_usable_cores);
  py::class_<ThreadTeam, std::shared_ptr<ThreadTeam>>(m, "ThreadTeam")
      .def(py::init<int, bool, int>(), py::arg("num_threads") = 0, py::arg("pin") = false,
           py::arg("spin_us") = 50)
      .def_property_readonly("num_threads", &ThreadTeam::num_threads);
  py::class_<HeldWeight>(m, "Weight")
      .def(py::init<const py::object&, const py::object&, const py::object&, std::int64_t, std::int64_t,
                    std::int64_t>(),
           py::arg("data"), py::arg("scale") = py::none(), py::arg("minimum") = py::none(),
           py::arg("columns") = 0, py::arg("group") = 0, py::arg("rows") = 0)
      .def_property_readonly("shape", [](const HeldWeight& held) {
        return std::make_pair(held.view().rows, held.view().columns);
      });
  m.def("gemm", &gemm_of_tensors, py::arg("team"), py::arg("x"), py::arg("weight"), py::arg("out"),
        py::arg("bias") = py::none(), py::arg("isa") = py::none());
  m.def("expert_ffn", &expert_ffn_of_tensors, py::arg("team"), py::arg("x"), py::arg("router"),
        py::arg("gate_up"), py::arg("down"), py::arg("out"), py::arg("num_used"),
        py::arg("normalized") = true, py::arg("isa") = py::none(), py::arg("exact") = false);
  m.def("nearest_code", &nearest_code_of_tensors, py::arg("team"), py::arg("x"), py::arg("codes"),
        py::arg("ids"), py::arg("isa") = py::none());
  m.def("sum_codes", &sum_codes_of_tensors, py::arg("team"), py::arg("ids"), py::arg("codes"),
        py::arg("sizes"), py::arg("out"), py::arg("isa") = py::none());
  m.def("product", &product_of_tensors, py::arg("x"), py::arg("weight"), py::arg("out"),
        py::arg("isa") = py::none(), py::arg("exact") = false);
}

}  // namespace innervoice
