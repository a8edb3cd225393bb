#include "innervoice/relative.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings/define.h"
#include "bindings/layers.h"

namespace innervoice {
namespace {

void attention_of_tensors(ThreadTeam& team, const py::object& q, const py::object& k, const py::object& v,
                          const py::object& bias_u, const py::object& bias_v, const py::object& positions,
                          const py::object& visible, const py::object& out, const IsaName& isa) {
  const Floats queries("q", q), keys("k", k), values("v", v), u("bias_u", bias_u), with_v("bias_v", bias_v);
  const Floats distances("positions", positions), to("out", out);
  const Import seen("visible", visible);
  Size B("B"), H("H"), U("U"), K("K"), d("d"), D("K + U - 1");
  RelativeCall call{};
  call.q = queries.match({B, H, U, d});
  call.k = keys.match({B, H, K, d});
  call.v = values.match({B, H, K, d});
  call.bias_u = u.match({H, d});
  call.bias_v = with_v.match({H, d});
  need(U.value() > 0 && K.value() > 0 && d.value() > 0 && d.value() % 16 == 0,
       "q, k: there must be queries and keys, of a width that is a multiple of 16");
  D.bind(K.value() + U.value() - 1);
  call.positions = distances.match({H, D, d});
  call.visible = match<const bool>("visible", seen.argument(), {B, U, K});
  call.y = to.match_writable({B, H, U, d});
  call.rows = B.value();
  call.heads = H.value();
  call.queries = U.value();
  call.keys = K.value();
  call.width = d.value();
  const Isa chosen = numerics_of(false, isa).isa;
  const py::gil_scoped_release release;
  relative_attention(team, chosen, call);
}

std::unique_ptr<RelativeLayer> relative_layer_of(const Tensors& t, const py::object& bias_u,
                                                 const py::object& bias_v, const py::object& positions,
                                                 const IsaName& isa) {
  need(t.size() == 12, "a layer has 12 tensors: norm, qkv, out, norm, up, down, weight and bias each");
  const Numerics numerics = numerics_of(false, isa);
  const Floats u("bias_u", bias_u), v("bias_v", bias_v), distances("positions", positions);
  Size H("H"), d("d"), P("distances");
  const float* place = distances.match({H, P, d});
  const float *one = u.match({H, d}), *other = v.match({H, d});
  const std::int64_t channels = H.value() * d.value();
  need(channels > 0 && d.value() % 16 == 0, "positions: expected heads of a width that is a multiple of 16");
  RelativeLayer::Parts parts{norm_of("norm", t[0], t[1], channels),
                             affine_of(numerics, "qkv", t[2], t[3]),
                             affine_of(numerics, "out", t[4], t[5]),
                             norm_of("norm_ffn", t[6], t[7], channels),
                             affine_of(numerics, "up", t[8], t[9]),
                             affine_of(numerics, "down", t[10], t[11]),
                             {one, one + channels},
                             {other, other + channels}};
  const auto fits = [](const Affine& layer, std::int64_t columns, std::int64_t depth) {
    return layer.weight.taps() == 1 && layer.weight.columns() == columns && layer.weight.depth() == depth;
  };
  const std::int64_t hidden = parts.up.weight.columns();
  need(fits(parts.qkv, 3 * channels, channels) && fits(parts.out, channels, channels) &&
           fits(parts.up, hidden, channels) && fits(parts.down, channels, hidden),
       "a layer's weights do not fit: expected qkv [3 D, 1, D], out [D, 1, D], up [F, 1, D], down [D, 1, F]");
  return std::make_unique<RelativeLayer>(numerics.isa, std::move(parts), H.value(), place, P.value());
}

void run_relative_layer(const RelativeLayer& layer, ThreadTeam& team, const py::object& x,
                        const py::object& cache, const py::object& visible, const py::object& closed,
                        const py::object& out, const py::object& cache_after) {
  const Floats from("x", x), past("cache", cache), to("out", out), after("cache_after", cache_after);
  const Import seen("visible", visible), lengths("closed", closed);
  Size B("B"), U("U"), D("D"), C("C"), two("2"), K("C + U");
  D.bind(layer.channels());
  two.bind(2);
  const float* input = from.match({B, U, D});
  C.bind(std::max<std::int64_t>(0, layer.cached(U.value())));
  EncodedCall call{};
  call.cache = past.match({B, C, two, D});
  K.bind(C.value() + U.value());
  call.visible = match<const bool>("visible", seen.argument(), {B, U, K});
  call.closed = match<const std::int64_t>("closed", lengths.argument(), {B});
  float* y = to.match_writable({B, U, D});
  call.cache_after = after.match_writable({B, C, two, D});
  call.rows = B.value();
  call.tokens = U.value();
  need(U.value() > 0 && layer.cached(U.value()) >= 0,
       "x: more tokens than the layer has distances for, or none");
  need_lengths(call.closed, call.rows, call.tokens);
  const py::gil_scoped_release release;
  layer.run(team, call, input, y);
}

}  // namespace

void define_relative(py::module_& m) {
  const auto isa = py::arg("isa") = py::none();
  m.def("relative_attention", &attention_of_tensors, py::arg("team"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("bias_u"), py::arg("bias_v"), py::arg("positions"), py::arg("visible"),
        py::arg("out"), isa);
  py::class_<RelativeLayer>(m, "RelativeLayer")
      .def(py::init(&relative_layer_of), py::arg("tensors"), py::arg("bias_u"), py::arg("bias_v"),
           py::arg("positions"), isa)
      .def("__call__", &run_relative_layer, py::arg("team"), py::arg("x"), py::arg("cache"),
           py::arg("visible"), py::arg("closed"), py::arg("out"), py::arg("cache_after"));
}

}  // namespace innervoice
