#include "innervoice/voice.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/define.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

FlowBlock block_of(Numerics numerics, const Tensors& t, std::int64_t channels, std::int64_t heads) {
  need(t.size() == 11,
       "a transformer has 11 tensors: two norms, qkv, out, up, down, with biases but for qkv");
  FlowBlock block{norm_of("norm1", t[0], t[1], channels), weight_of(numerics, "qkv", t[2]),
                  affine_of(numerics, "out", t[3], t[4]), norm_of("norm2", t[5], t[6], channels),
                  affine_of(numerics, "up", t[7], t[8]),  affine_of(numerics, "down", t[9], t[10])};
  const std::int64_t inner = block.out.weight.depth();
  need(block.qkv.depth() == channels && block.qkv.columns() == 3 * inner && inner % (16 * heads) == 0,
       "qkv: expected [3 H d, 1, C] with d a multiple of 16");
  need(block.out.weight.columns() == channels && block.up.weight.depth() == channels &&
           block.down.weight.columns() == channels && block.down.weight.depth() == block.up.weight.columns(),
       "a transformer's weights do not fit each other");
  for (const PackedWeight* w : {&block.qkv, &block.out.weight, &block.up.weight, &block.down.weight}) {
    need(w->taps() == 1, "a transformer's weights have one tap");
  }
  return block;
}

std::unique_ptr<FlowStage> stage_of(const Tensors& t, const std::vector<Tensors>& blocks, std::int64_t heads,
                                    bool halves, const IsaName& isa) {
  const Numerics numerics = numerics_of(halves, isa);
  need(t.size() == 10 && heads > 0,
       "a stage has 10 tensors: conv, norm, conv, norm, skip, each with its bias");
  Affine first = affine_of(numerics, "first", t[0], t[1]), second = affine_of(numerics, "second", t[4], t[5]);
  Affine skip = affine_of(numerics, "skip", t[8], t[9]);
  const std::int64_t channels = first.weight.columns();
  need(channels % 16 == 0 && first.weight.taps() == 3 && second.weight.taps() == 3 &&
           skip.weight.taps() == 1 && second.weight.depth() == channels &&
           second.weight.columns() == channels && skip.weight.columns() == channels &&
           skip.weight.depth() == first.weight.depth(),
       "a stage's weights do not fit: expected [C, 3, K], [C, 3, C], [C, 1, K] with C a multiple of 16");
  std::vector<FlowBlock> made;
  for (const Tensors& block : blocks) made.push_back(block_of(numerics, block, channels, heads));
  return std::make_unique<FlowStage>(
      numerics, heads, std::move(first), norm_of("norm1", t[2], t[3], channels), std::move(second),
      norm_of("norm2", t[6], t[7], channels), std::move(skip), std::move(made));
}

void run_stage(const FlowStage& stage, ThreadTeam& team, const py::object& x, const py::object& n,
               const py::object& shift, const py::object& out,
               const std::optional<std::pair<py::object, py::object>>& given) {
  const Floats from("x", x), added("shift", shift), to("out", out);
  std::optional<Floats> first, skip;
  const Import lengths("n", n);
  Size R("R"), T("T"), K("K"), C("C");
  K.bind(stage.depth());
  C.bind(stage.channels());
  const float* input = from.match({R, T, K});
  const auto* length = match<const std::int64_t>("n", lengths.argument(), {R});
  const float* shifts = added.match({C});
  float* y = to.match_writable({R, T, C});
  const float *to_first = nullptr, *to_skip = nullptr;
  if (given) {
    to_first = first.emplace("given", given->first).match({R, T, C});
    to_skip = skip.emplace("given", given->second).match({R, T, C});
  }
  need_lengths(length, R.value(), T.value());
  const py::gil_scoped_release release;
  stage.run(team, input, R.value(), T.value(), length, shifts, to_first, to_skip, y);
}

std::unique_ptr<FrameConv> frame_conv_of(const py::object& weight, const py::object& bias, bool halves,
                                         const IsaName& isa) {
  const Numerics numerics = numerics_of(halves, isa);
  return std::make_unique<FrameConv>(numerics, affine_of(numerics, "weight", weight, bias));
}

void run_frame_conv(const FrameConv& conv, ThreadTeam& team, const py::object& x, const py::object& n,
                    std::int64_t stride, std::int64_t pad, const py::object& out, const py::object& out_n) {
  const Floats from("x", x), to("out", out);
  const Import lengths("n", n), out_lengths("out_n", out_n);
  Size R("R"), T("T"), K("K"), after("T'"), N("N");
  K.bind(conv.depth());
  N.bind(conv.columns());
  const float* input = from.match({R, T, K});
  const auto* length = match<const std::int64_t>("n", lengths.argument(), {R});
  float* y = to.match_writable({R, after, N});
  const auto* out_length = match<const std::int64_t>("out_n", out_lengths.argument(), {R});
  need(stride > 0 && pad >= 0, "stride must be above 0 and pad not below");
  need_lengths(length, R.value(), T.value());
  need_lengths(out_length, R.value(), after.value());
  const py::gil_scoped_release release;
  conv.run(team, input, R.value(), T.value(), length, stride, pad, y, after.value(), out_length);
}

constexpr std::int64_t kNarrow = 16;  // channels up to which vectors run along the time

std::unique_ptr<ResidualUnit> unit_of(const py::object& alpha, const py::object& first,
                                      const py::object& first_bias, const py::object& beta,
                                      const py::object& second, const py::object& second_bias,
                                      std::int64_t dilation, bool halves, const IsaName& isa) {
  const Numerics numerics = numerics_of(halves, isa);
  const Floats one("first", first), two("second", second);
  Size C("C"), taps("k");
  const float* weight = one.match({C, taps, C});
  const float* next = two.match({C, taps, C});
  const std::int64_t width = C.value();
  const bool is_narrow = width <= kNarrow && width % 4 == 0 && !halves;
  need((is_narrow || width % 16 == 0) && taps.value() % 2 == 1 && dilation > 0,
       "a residual unit has weights [C, k, C], k odd, C a multiple of 16, or of 4 up to 16, and a dilation "
       "above 0");
  std::vector<float> a = vector_of("alpha", alpha, width), b = vector_of("beta", beta, width);
  if (is_narrow) {
    return std::make_unique<WaveUnit>(numerics.isa, width, taps.value(), dilation, std::move(a), weight,
                                      vector_of("first_bias", first_bias, width), std::move(b), next,
                                      vector_of("second_bias", second_bias, width));
  }
  return std::make_unique<PanelUnit>(numerics, std::move(a), affine_of(numerics, "first", first, first_bias),
                                     std::move(b), affine_of(numerics, "second", second, second_bias),
                                     dilation);
}

void run_unit(const ResidualUnit& unit, ThreadTeam& team, const py::object& x, const py::object& history,
              const py::object& inner, const py::object& n,
              const std::optional<std::pair<py::object, py::object>>& bounds, const py::object& y,
              const py::object& history_after, const py::object& inner_after) {
  const Floats from("x", x), past("history", history), middle("inner", inner), to("y", y);
  const Floats past_after("history_after", history_after), middle_after("inner_after", inner_after);
  const Import lengths("n", n);
  std::optional<Import> start, end;
  Size B("B"), C("C"), T("T"), reach("2 h d"), double_half("2 h");
  reach.bind(2 * unit.half() * unit.dilation());
  double_half.bind(2 * unit.half());
  ResidualCall call{};
  call.x = from.match({B, C, T});
  call.history = past.match({B, C, reach});
  call.inner = middle.match({B, C, double_half});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.y = to.match_writable({B, C, T});
  call.history_after = past_after.match_writable({B, C, reach});
  call.inner_after = middle_after.match_writable({B, C, double_half});
  if (bounds) {
    call.start = match<const std::int64_t>("start", start.emplace("start", bounds->first).argument(), {B});
    call.end = match<const std::int64_t>("end", end.emplace("end", bounds->second).argument(), {B});
  }
  call.rows = B.value();
  call.channels = C.value();
  call.columns = T.value();
  need(unit.takes(call.channels), "x: its channels are not the unit's");
  need_lengths(call.n, call.rows, call.columns);
  const py::gil_scoped_release release;
  unit.run(team, call);
}

void group_norm_of_tensors(ThreadTeam& team, const py::object& x, const py::object& n,
                           const py::object& weight, const py::object& bias, std::int64_t groups, float eps,
                           const py::object& out, const IsaName& isa) {
  const Floats from("x", x), scales("weight", weight), shifts("bias", bias), to("out", out);
  const Import lengths("n", n);
  Size B("B"), C("C"), T("T");
  GroupNormCall call{};
  call.x = from.match({B, C, T});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  call.weight = scales.match({C});
  call.bias = shifts.match({C});
  call.y = to.match_writable({B, C, T});
  need(groups > 0 && C.value() % groups == 0, "groups: must divide the channels");
  call.rows = B.value();
  call.channels = C.value();
  call.columns = T.value();
  call.groups = groups;
  call.eps = eps;
  need_lengths(call.n, call.rows, call.columns);
  const Isa chosen = numerics_of(false, isa).isa;
  const py::gil_scoped_release release;
  group_norm_mish(team, chosen, call);
}

}  // namespace

void define_voice(py::module_& m) {
  const auto isa = py::arg("isa") = py::none();
  const auto halves = py::arg("halves") = false;
  m.def("group_norm_mish", &group_norm_of_tensors, py::arg("team"), py::arg("x"), py::arg("n"),
        py::arg("weight"), py::arg("bias"), py::arg("groups"), py::arg("eps"), py::arg("out"), isa);
  m.def("has_halves", [] { return best_isa() == Isa::kAvx512; });
  py::class_<FlowStage>(m, "FlowStage")
      .def(py::init(&stage_of), py::arg("tensors"), py::arg("blocks"), py::arg("heads"), halves, isa)
      .def("__call__", &run_stage, py::arg("team"), py::arg("x"), py::arg("n"), py::arg("shift"),
           py::arg("out"), py::arg("given") = py::none());
  py::class_<FrameConv>(m, "FrameConv")
      .def(py::init(&frame_conv_of), py::arg("weight"), py::arg("bias"), halves, isa)
      .def("__call__", &run_frame_conv, py::arg("team"), py::arg("x"), py::arg("n"), py::arg("stride"),
           py::arg("pad"), py::arg("out"), py::arg("out_n"));
  py::class_<ResidualUnit>(m, "ResidualUnit")
      .def(py::init(&unit_of), py::arg("alpha"), py::arg("first"), py::arg("first_bias"), py::arg("beta"),
           py::arg("second"), py::arg("second_bias"), py::arg("dilation"), halves, isa)
      .def("__call__", &run_unit, py::arg("team"), py::arg("x"), py::arg("history"), py::arg("inner"),
           py::arg("n"), py::arg("bounds"), py::arg("y"), py::arg("history_after"), py::arg("inner_after"));
}

}  // namespace innervoice
