#include "innervoice/fuse.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/define.h"
#include "bindings/import.h"

namespace innervoice {
namespace {

void check_groups(const FuseCall& call) {
  for (std::int64_t group = 0; group < call.groups; ++group) {
    const std::int64_t begin = call.offsets[group], end = call.offsets[group + 1], kind = call.kinds[group];
    const auto known = static_cast<std::int64_t>(Fusing::kContrast);
    const bool needs_two = kind >= static_cast<std::int64_t>(Fusing::kGuidance);
    if (kind < 0 || kind > known || begin < 0 || end > call.rows || end - begin < 1 + needs_two) {
      throw std::invalid_argument("offsets: group " + std::to_string(group) + " of kind " +
                                  std::to_string(kind) + " has rows " + std::to_string(begin) + " to " +
                                  std::to_string(end) + " of " + std::to_string(call.rows));
    }
  }
}

void fuse_tensors(ThreadTeam& team, const py::object& logits, const py::object& offsets,
                  const py::object& kinds, const py::object& weights, const py::object& log_prior,
                  const py::object& out, const py::object& stats, const std::optional<std::string>& isa) {
  const Import z("logits", logits), at("offsets", offsets), kind("kinds", kinds), weight("weights", weights);
  const Import prior("log_prior", log_prior), to("out", out), stat("stats", stats);
  Size R("R"), V("V"), G("G"), two("2"), three("3");
  two.bind(2);
  three.bind(3);
  FuseCall call{};
  call.logits = match<const float>("logits", z.argument(), {R, V});
  call.kinds = match<const std::int64_t>("kinds", kind.argument(), {G});
  call.offsets = match<const std::int64_t>("offsets", at.argument(), {G + 1});
  call.weights = match<const float>("weights", weight.argument(), {G, three});
  call.log_prior = match<const float>("log_prior", prior.argument(), {R});
  call.out = match<float>("out", to.argument(), {G, V});
  call.stats = match<float>("stats", stat.argument(), {R, two});
  call.rows = R.value();
  call.vocabulary = V.value();
  call.groups = G.value();
  check_groups(call);
  const Isa how = isa ? isa_named(*isa) : best_isa();
  const py::gil_scoped_release release;
  fuse(team, how, call);
}

}  // namespace

void define_fuse(py::module_& m) {
  m.def("fuse", &fuse_tensors, py::arg("team"), py::arg("logits"), py::arg("offsets"), py::arg("kinds"),
        py::arg("weights"), py::arg("log_prior"), py::arg("out"), py::arg("stats"),
        py::arg("isa") = py::none());
}

}  // namespace innervoice
