#include "innervoice/decoder.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/define.h"
#include "bindings/weight.h"

namespace innervoice {
namespace {

using Imports = std::vector<std::unique_ptr<Import>>;

const float* held_vector(Imports& held, const char* name, const py::object& tensor, std::int64_t count) {
  if (tensor.is_none()) return nullptr;
  Size D("D");
  D.bind(count);
  return match<const float>(
      name, held.emplace_back(std::make_unique<Import>(name, tensor, Hold::kLong))->argument(), {D});
}

// A decoder with all that its pointers point to.
class HeldDecoder {
 public:
  HeldDecoder(std::shared_ptr<ThreadTeam> team, const py::dict& shape, const py::object& embedding,
              const py::list& layers, const py::object& final_norm, const py::object& output,
              const std::optional<std::string>& isa) {
    DecoderModel model;
    model.num_heads = shape["num_heads"].cast<std::int64_t>();
    model.num_kv_heads = shape["num_kv_heads"].cast<std::int64_t>();
    model.head_dim = shape["head_dim"].cast<std::int64_t>();
    model.norm_eps = shape["norm_eps"].cast<float>();
    model.rope_interleaved = shape["rope_interleaved"].cast<bool>();
    model.inv_freq = shape["inv_freq"].cast<std::vector<float>>();
    model.rotary_scale = shape["rotary_scale"].cast<float>();
    model.rounds_to_bf16 = shape["rounds_to_bf16"].cast<bool>();
    model.is_exact = shape["is_exact"].cast<bool>();
    if (shape.contains("num_used_experts")) {
      model.num_used_experts = shape["num_used_experts"].cast<std::int64_t>();
      model.normalizes_experts = shape["normalizes_experts"].cast<bool>();
    }
    model.embedding = weight_of(embedding);
    model.output = weight_of(output);
    model.final_norm = held_vector(held_, "final_norm", final_norm, model.embedding.columns);
    const std::int64_t qkv_size = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
    for (const py::handle& item : layers) {
      const auto given = py::reinterpret_borrow<py::dict>(item);
      const auto norm = [&](const char* name, std::int64_t count) {
        return held_vector(held_, name, given[name], count);
      };
      DecoderLayer layer;
      layer.attention_norm = norm("attention_norm", model.embedding.columns);
      layer.qkv = weight_of(given["qkv"]);
      layer.qkv_bias = norm("qkv_bias", qkv_size);
      layer.q_norm = norm("q_norm", model.head_dim);
      layer.k_norm = norm("k_norm", model.head_dim);
      layer.attention_out = weight_of(given["attention_out"]);
      layer.ffn_norm = norm("ffn_norm", model.embedding.columns);
      layer.gate_up = weight_of(given["gate_up"]);
      layer.down = weight_of(given["down"]);
      if (given.contains("router")) layer.router = weight_of(given["router"]);
      model.layers.push_back(layer);
    }
    decoder_ =
        std::make_unique<Decoder>(std::move(model), std::move(team), isa ? isa_named(*isa) : best_isa());
  }

  void step(const py::object& ids, const py::object& positions, const py::object& slots,
            const py::object& page_table, const py::object& query_start, const py::object& context_len,
            const py::object& k_pages, const py::object& v_pages, const py::object& key_tag,
            const py::object& query_tag, const py::object& log_weight, const py::object& wanted,
            const py::object& logits, const py::object& outputs) {
    Imports held;
    const auto argument = [&](const char* name, const py::object& tensor) {
      return held.emplace_back(std::make_unique<Import>(name, tensor))->argument();
    };
    Size T("T"), B("B"), columns("N"), W("W"), V("V");
    V.bind(decoder_->model().output.rows);
    DecoderBatch batch;
    batch.ids = match<const std::int64_t>("ids", argument("ids", ids), {T});
    batch.positions = match<const std::int64_t>("positions", argument("positions", positions), {T});
    batch.slots = match<const std::int64_t>("slots", argument("slots", slots), {T});
    batch.page_table =
        match<const std::int32_t>("page_table", argument("page_table", page_table), {B, columns});
    batch.query_start =
        match<const std::int32_t>("query_start", argument("query_start", query_start), {B + 1});
    batch.context_len = match<const std::int32_t>("context_len", argument("context_len", context_len), {B});
    batch.wanted = match<const std::int64_t>("wanted", argument("wanted", wanted), {W});
    batch.num_tokens = T.value();
    batch.num_rows = B.value();
    batch.columns = columns.value();
    batch.num_wanted = W.value();
    if (!outputs.is_none()) {
      Size N("N"), two("2");
      two.bind(2);
      batch.outputs = match<const std::int64_t>("outputs", argument("outputs", outputs), {N, two});
      batch.num_outputs = N.value();
    }
    DecoderPages pages;
    match_pages(argument("k_pages", k_pages), argument("v_pages", v_pages), pages);
    if (!query_tag.is_none()) {
      Size P("P"), S("page_size");
      P.bind(pages.num_pages);
      S.bind(pages.page_size);
      batch.query_tag = match<const std::int32_t>("query_tag", argument("query_tag", query_tag), {T});
      batch.log_weight = match<const float>("log_weight", argument("log_weight", log_weight), {T});
      pages.key_tag = match<const std::int32_t>("key_tag", argument("key_tag", key_tag), {P, S});
    }
    float* out = match<float>("logits", argument("logits", logits), {W, V});
    const py::gil_scoped_release release;
    decoder_->step(batch, pages, out);
  }

 private:
  Weight weight_of(const py::object& weight) {
    kept_.push_back(weight);
    return weight.cast<const HeldWeight&>().view();
  }

  void match_pages(const Argument& k, const Argument& v, DecoderPages& pages) const {
    const DecoderModel& model = decoder_->model();
    Size L("L"), P("P"), S("page_size"), G("G"), D("head_dim");
    L.bind(static_cast<std::int64_t>(model.layers.size()));
    G.bind(model.num_kv_heads);
    D.bind(model.head_dim);
    pages.is_bf16 = k.tensor.dtype.code == dlpack::kBfloat;
    if (pages.is_bf16) {
      pages.k = match<Bfloat16>("k_pages", k, {L, P, S, G, D});
      pages.v = match<Bfloat16>("v_pages", v, {L, P, S, G, D});
    } else {
      pages.k = match<float>("k_pages", k, {L, P, S, G, D});
      pages.v = match<float>("v_pages", v, {L, P, S, G, D});
    }
    pages.num_pages = P.value();
    pages.page_size = S.value();
  }

  Imports held_;
  std::vector<py::object> kept_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

void define_decoder(py::module_& m) {
  py::class_<HeldDecoder>(m, "Decoder")
      .def(py::init<std::shared_ptr<ThreadTeam>, const py::dict&, const py::object&, const py::list&,
                    const py::object&, const py::object&, const std::optional<std::string>&>(),
           py::arg("team"), py::arg("shape"), py::arg("embedding"), py::arg("layers"), py::arg("final_norm"),
           py::arg("output"), py::arg("isa") = py::none())
      .def("step", &HeldDecoder::step, py::kw_only(), py::arg("ids"), py::arg("positions"), py::arg("slots"),
           py::arg("page_table"), py::arg("query_start"), py::arg("context_len"), py::arg("k_pages"),
           py::arg("v_pages"), py::arg("key_tag"), py::arg("query_tag"), py::arg("log_weight"),
           py::arg("wanted"), py::arg("logits"), py::arg("outputs") = py::none());
}

}  // namespace innervoice
