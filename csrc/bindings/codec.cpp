#include "innervoice/codec.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings/define.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

std::vector<float> bias_of(const std::optional<py::object>& bias, std::int64_t columns) {
  return bias ? vector_of("bias", *bias, columns)
              : std::vector<float>(static_cast<std::size_t>(columns), 0.0f);
}

std::unique_ptr<TapsConv> taps_of(const py::object& weight, const std::optional<py::object>& bias,
                                  std::int64_t dilation, const IsaName& isa) {
  const Floats floats("weight", weight);
  Size N("N"), taps("taps"), K("K");
  const float* data = floats.match({N, taps, K});
  need(N.value() > 0 && taps.value() > 0 && K.value() > 0 && dilation > 0,
       "a convolution has columns, taps and channels, and a dilation above 0");
  return std::make_unique<TapsConv>(numerics_of(false, isa).isa, data, bias_of(bias, N.value()), taps.value(),
                                    K.value(), dilation);
}

template <typename Op, typename Run>
void run_window(const Op& op, std::int64_t out, const py::object& before, const py::object& x,
                const py::object& y, Run&& run) {
  const Floats past("before", before), from("x", x), to("out", y);
  Size B("B"), P("P"), T("T"), K("K"), after("P + T - reach"), N("N");
  K.bind(op.depth());
  N.bind(out);
  Window window{};
  window.before = past.match({B, P, K});
  window.x = from.match({B, T, K});
  window.rows = B.value();
  window.past = P.value();
  window.columns = T.value();
  window.depth = K.value();
  after.bind(std::max<std::int64_t>(0, window.past + window.columns - op.reach()));
  float* result = to.match_writable({B, after, N});
  const py::gil_scoped_release release;
  run(window, result);
}

void run_taps(const TapsConv& conv, ThreadTeam& team, const py::object& before, const py::object& x,
              const py::object& y) {
  run_window(conv, conv.columns(), before, x, y,
             [&](const Window& window, float* result) { conv.run(team, window, result); });
}

using Layer = std::pair<py::object, std::optional<py::object>>;

Affine affine_of(Isa isa, const char* name, const Layer& layer) {
  PackedWeight packed = weight_of({isa, false}, name, layer.first);
  const std::int64_t columns = packed.columns();
  return {std::move(packed), bias_of(layer.second, columns)};
}

std::unique_ptr<EluUnit> elu_unit_of(const Layer& wide, const Layer& narrow,
                                     const std::optional<Layer>& shortcut, std::int64_t dilation,
                                     const IsaName& isa) {
  const Isa chosen = numerics_of(false, isa).isa;
  Affine first = affine_of(chosen, "wide", wide), second = affine_of(chosen, "narrow", narrow);
  std::optional<Affine> beside;
  if (shortcut) beside = affine_of(chosen, "shortcut", *shortcut);
  const std::int64_t width = first.weight.depth();
  need(width > 0 && second.weight.columns() == width && second.weight.depth() == first.weight.columns() &&
           second.weight.taps() == 1 && first.weight.taps() > 0 && dilation > 0,
       "a unit has weights [H, k, C] and [C, 1, H], and a dilation above 0");
  need(!beside || (beside->weight.columns() == width && beside->weight.depth() == width &&
                   beside->weight.taps() == 1),
       "shortcut: expected [C, 1, C]");
  return std::make_unique<EluUnit>(chosen, std::move(first), std::move(second), std::move(beside), dilation);
}

void run_elu_unit(const EluUnit& unit, ThreadTeam& team, const py::object& before, const py::object& x,
                  bool elu, const py::object& y) {
  run_window(unit, unit.depth(), before, x, y,
             [&](const Window& window, float* result) { unit.run(team, window, elu, result); });
}

std::unique_ptr<WindowLayer> window_layer_of(const Tensors& t,
                                             const std::vector<std::optional<py::object>>& biases,
                                             std::int64_t heads, std::int64_t groups, std::int64_t window,
                                             float eps, const IsaName& isa) {
  need(t.size() == 10 && biases.size() == 4,
       "a layer has 10 tensors: norm with bias, qkv, out, scale, norm with bias, up, down, scale; and 4 "
       "biases");
  need(heads > 0 && groups > 0 && heads % groups == 0 && window > 0,
       "heads: a multiple of the groups; window: above 0");
  const Isa chosen = numerics_of(false, isa).isa;
  Affine qkv = affine_of(chosen, "qkv", {t[2], biases[0]}), out = affine_of(chosen, "out", {t[3], biases[1]});
  Affine up = affine_of(chosen, "up", {t[7], biases[2]}), down = affine_of(chosen, "down", {t[8], biases[3]});
  const std::int64_t channels = qkv.weight.depth(), inner = out.weight.depth();
  need(channels % 16 == 0 && inner % (16 * heads) == 0 &&
           qkv.weight.columns() == inner / heads * (heads + 2 * groups),
       "qkv: expected [(H + 2 G) d, 1, D] with D and d multiples of 16");
  need(out.weight.columns() == channels && up.weight.depth() == channels &&
           down.weight.columns() == channels && down.weight.depth() == up.weight.columns(),
       "a layer's weights do not fit each other");
  for (const Affine* layer : {&qkv, &out, &up, &down})
    need(layer->weight.taps() == 1, "a layer's weights have one tap");
  WindowLayer::Parts parts{norm_of("norm", t[0], t[1], channels),
                           std::move(qkv),
                           std::move(out),
                           vector_of("scale", t[4], channels),
                           norm_of("norm_ffn", t[5], t[6], channels),
                           std::move(up),
                           std::move(down),
                           vector_of("scale_ffn", t[9], channels)};
  return std::make_unique<WindowLayer>(chosen, std::move(parts),
                                       WindowLayer::Shape{heads, groups, window, eps});
}

void run_window_layer(const WindowLayer& layer, ThreadTeam& team, const py::object& x, const py::object& cos,
                      const py::object& sin, const py::object& ring, const py::object& slots,
                      const py::object& start, const py::object& n, const py::object& y) {
  const Floats from("x", x), cosines("cos", cos), sines("sin", sin), keys("ring", ring), to("out", y);
  const Import places("slots", slots), starts("start", start), lengths("n", n);
  Size B("B"), T("T"), D("D"), M("B T"), half("d / 2"), S("S"), two("2"), R("R"), G("G"), d("d");
  D.bind(layer.channels());
  d.bind(layer.head_dim());
  half.bind(layer.head_dim() / 2);
  two.bind(2);
  G.bind(layer.groups());
  RingCall call{};
  const float* input = from.match({B, T, D});
  M.bind(B.value() * T.value());
  call.cos = cosines.match({M, half});
  call.sin = sines.match({M, half});
  call.ring = keys.match_writable({S, two, R, G, d});
  call.slots = match<const std::int64_t>("slots", places.argument(), {B});
  call.start = match<const std::int64_t>("start", starts.argument(), {B});
  call.n = match<const std::int64_t>("n", lengths.argument(), {B});
  float* result = to.match_writable({B, T, D});
  call.rows = B.value();
  call.tokens = T.value();
  call.places = R.value();
  need_lengths(call.n, call.rows, call.tokens);
  need(R.value() >= layer.window() - 1 + T.value(), "ring: expected R of at least window - 1 + T");
  for (std::int64_t row = 0; row < call.rows; ++row) {
    need(call.slots[row] >= 0 && call.slots[row] < S.value() && call.start[row] >= 0,
         "slots: expected 0 to S - 1; start: not below 0");
  }
  const py::gil_scoped_release release;
  layer.run(team, call, input, result);
}

void snake_of_tensors(ThreadTeam& team, const py::object& x, const py::object& alpha, const py::object& out,
                      const IsaName& isa) {
  const Floats from("x", x), rates("alpha", alpha), to("out", out);
  Size R("R"), C("C");
  const float* input = from.match({R, C});
  need(C.value() > 0 && C.value() % 16 == 0, "x: its channels must be a multiple of 16");
  const float* a = rates.match({C});
  float* y = to.match_writable({R, C});
  const Isa chosen = numerics_of(false, isa).isa;
  const py::gil_scoped_release release;
  snake(team, chosen, input, R.value(), C.value(), a, y);
}

}  // namespace

void define_codec(py::module_& m) {
  m.def("snake", &snake_of_tensors, py::arg("team"), py::arg("x"), py::arg("alpha"), py::arg("out"),
        py::arg("isa") = py::none());
  const auto isa = py::arg("isa") = py::none();
  py::class_<TapsConv>(m, "TapsConv")
      .def(py::init(&taps_of), py::arg("weight"), py::arg("bias"), py::arg("dilation") = 1, isa)
      .def("__call__", &run_taps, py::arg("team"), py::arg("before"), py::arg("x"), py::arg("out"));
  py::class_<EluUnit>(m, "EluUnit")
      .def(py::init(&elu_unit_of), py::arg("wide"), py::arg("narrow"), py::arg("shortcut") = py::none(),
           py::arg("dilation") = 1, isa)
      .def("__call__", &run_elu_unit, py::arg("team"), py::arg("before"), py::arg("x"), py::arg("elu"),
           py::arg("out"));
  py::class_<WindowLayer>(m, "WindowLayer")
      .def(py::init(&window_layer_of), py::arg("tensors"), py::arg("biases"), py::arg("heads"),
           py::arg("groups"), py::arg("window"), py::arg("eps"), isa)
      .def("__call__", &run_window_layer, py::arg("team"), py::arg("x"), py::arg("cos"), py::arg("sin"),
           py::arg("ring"), py::arg("slots"), py::arg("start"), py::arg("n"), py::arg("out"));
}

}  // namespace innervoice
