#include "innervoice/sample.h"

#include "bindings/define.h"
#include "bindings/import.h"
namespace innervoice {
namespace {

void check_ranges(const SampleCall& call, std::int64_t num_ranges) {
  for (std::int64_t row = 0; row < call.rows; ++row) {
    std::int64_t begin = call.offsets[row], end = call.offsets[row + 1], last = 0;
    if (begin < 0 || end < begin || end > num_ranges) {
      throw std::invalid_argument("offsets: row " + std::to_string(row) + " has ranges " +
                                  std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                  std::to_string(num_ranges));
    }
    for (; begin < end; ++begin) {
      const std::int64_t low = call.ranges[2 * begin], high = call.ranges[2 * begin + 1];
      if (low < last || high < low || high > call.vocabulary) {
        throw std::invalid_argument("ranges: row " + std::to_string(row) + " has " + std::to_string(low) +
                                    " to " + std::to_string(high) +
                                    ", expected ascending ones of ids below " +
                                    std::to_string(call.vocabulary));
      }
      last = high;
    }
  }
}

void sample_tensors(ThreadTeam& team, const py::object& logits, const py::object& offsets,
                    const py::object& ranges, const py::object& temperature, const py::object& top_k,
                    const py::object& top_p, const py::object& keys, const py::object& ids,
                    const py::object& logprobs) {
  const Import z("logits", logits), at("offsets", offsets), span("ranges", ranges),
      heat("temperature", temperature);
  const Import k("top_k", top_k), p("top_p", top_p), key("keys", keys), out("ids", ids),
      logprob("logprobs", logprobs);
  Size B("B"), V("V"), N("N"), two("2"), three("3");
  two.bind(2);
  three.bind(3);
  SampleCall call{};
  call.logits = match<const float>("logits", z.argument(), {B, V});
  call.offsets = match<const std::int64_t>("offsets", at.argument(), {B + 1});
  call.ranges = match<const std::int64_t>("ranges", span.argument(), {N, two});
  call.temperature = match<const float>("temperature", heat.argument(), {B});
  call.top_k = match<const std::int64_t>("top_k", k.argument(), {B});
  call.top_p = match<const double>("top_p", p.argument(), {B});
  call.keys = match<const std::int64_t>("keys", key.argument(), {B, three});
  call.ids = match<std::int64_t>("ids", out.argument(), {B});
  call.logprobs = match<float>("logprobs", logprob.argument(), {B});
  call.rows = B.value();
  call.vocabulary = V.value();
  check_ranges(call, N.value());
  const py::gil_scoped_release release;
  sample(team, call);
}

}  // namespace

void define_sample(py::module_& m) {
  m.def("sample", &sample_tensors, py::arg("team"), py::arg("logits"), py::arg("offsets"), py::arg("ranges"),
        py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("keys"), py::arg("ids"),
        py::arg("logprobs"));
}

}  // namespace innervoice
