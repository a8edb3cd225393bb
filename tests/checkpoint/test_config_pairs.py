"""Two places that say one thing: the one that transformers 5 goes by counts, or the difference is refused by name.

One table of the places in config.json, one each for generation_config.json, the tokenizer's files and codecs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_files import save
from codec_models import DAC, MIMI
from family_models import LINEAR, LLAMA3, PLAIN, VOCAB, YARN, make, transformers
from rows import Rows
from torch import Tensor

from innervoice.checkpoint.codec_readers import read_codec_json, read_dac, read_mimi
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.model_config import _PROCESSORS, read_generation_config
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.checkpoint.tied_head import check_tied_head
from innervoice.model.families import family_of, llama
from innervoice.model.text import chat_turn_ids, eos_ids
from innervoice.model.transformer import Transformer

ALL = ("llama", "qwen2", "qwen3", "glm")
IDS = torch.randint(0, VOCAB, (1, 60), generator=torch.Generator().manual_seed(5))


def without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


NO_THETA = without(YARN, "rope_theta")
# What is written into config.json (...: taken out), the families, and the words of the refusal (none: as transformers).
PAIRS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "rope_scaling over rope_parameters": ({"rope_scaling": NO_THETA}, ALL, ()),
    "rope_scaling linear over yarn": ({"rope_scaling": LINEAR, "rope_parameters": YARN}, ALL, ()),
    "rope_scaling llama3 over linear": ({"rope_scaling": LLAMA3, "rope_parameters": LINEAR}, ALL, ()),
    "rope_scaling default over linear": ({"rope_scaling": PLAIN, "rope_parameters": LINEAR}, ALL, ()),
    "rope_scaling null": ({"rope_scaling": None, "rope_parameters": LINEAR}, ALL, ()),
    "rope_scaling empty": ({"rope_scaling": {}, "rope_parameters": LINEAR}, ALL, ()),
    "rope_scaling equal": ({"rope_scaling": LINEAR, "rope_parameters": LINEAR}, ALL, ()),
    "rope_scaling alone": ({"rope_scaling": NO_THETA, "rope_parameters": ..., "rope_theta": 500.0}, ALL, ()),
    "rope_scaling dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ALL, ("rope_scaling", "dynamic")),
    "base of rope_parameters lost": (
        {"rope_scaling": NO_THETA, "rope_parameters": PLAIN | {"rope_theta": 500.0}}, ALL,
        ("rope_parameters", "rope_scaling", "rope_theta 500.0"),
    ),
    "share of rope_parameters lost": (
        {"rope_scaling": YARN, "rope_parameters": PLAIN | {"partial_rotary_factor": 0.75}}, ("glm",),
        ("rope_parameters", "rope_scaling", "partial_rotary_factor 0.75"),
    ),
    "base beside, in rope_scaling too": ({"rope_scaling": YARN, "rope_theta": 500.0}, ALL, ()),
    "base beside, not in rope_scaling": ({"rope_scaling": NO_THETA, "rope_theta": 500.0}, ALL, ()),
    "base beside, in rope_parameters too": ({"rope_theta": 500.0}, ALL, ()),
    "base beside, not in rope_parameters": ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0}, ALL, ()),
    "base nowhere": ({"rope_parameters": {"rope_type": "default"}}, ALL, ()),
    "rope_type over type": ({"rope_parameters": LINEAR | {"type": "yarn"}}, ALL, ()),
    "type alone": ({"rope_parameters": without(LINEAR, "rope_type") | {"type": "linear"}}, ALL, ()),
    "trained length beside and inside": ({"rope_parameters": YARN, "original_max_position_embeddings": 64}, ALL, ()),
    "trained length from max_position_embeddings": (
        {"rope_parameters": without(YARN, "original_max_position_embeddings")}, ALL, (),
    ),
    "share beside, whole heads": ({"partial_rotary_factor": 0.5}, ("llama", "qwen2", "qwen3"), ()),
    "share inside, whole heads": (
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, ("llama", "qwen2", "qwen3"), (),
    ),
    "share of whole heads, scaled": (
        {"rope_parameters": LINEAR, "partial_rotary_factor": 0.5}, ("llama", "qwen2", "qwen3"),
        ("partial_rotary_factor is 0.5", "whole heads"),
    ),
    "share beside": ({"rope_parameters": PLAIN, "partial_rotary_factor": 0.25}, ("glm",), ()),
    "share beside and inside": (
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.75}, "partial_rotary_factor": 0.25}, ("glm",), (),
    ),
    "dtype over torch_dtype": ({"dtype": "float32", "torch_dtype": "bfloat16"}, ALL, ()),
    "dtype null, torch_dtype": ({"dtype": None, "torch_dtype": "bfloat16"}, ALL, ()),
    "torch_dtype alone": ({"dtype": ..., "torch_dtype": "float16"}, ALL, ()),
    "head_dim null": ({"head_dim": None}, ("llama",), ()),
    "head_dim missing": ({"head_dim": ...}, ("llama", "qwen2"), ()),
    "head_dim over hidden_size": ({"head_dim": 32}, ("llama", "qwen3", "glm"), ("self_attn.q_proj.weight", "[128, 64]")),
    "vocab_size over rows": ({"vocab_size": 300}, ALL, ("embed_tokens", f"[{VOCAB}, 64]", "[300, 64]")),
    "layers over tensors": ({"num_hidden_layers": 4, "layer_types": ...}, ALL, ("model.layers.3",)),
    "layer_types of other layers": (
        {"layer_types": ["full_attention"] * 2}, ("qwen2", "qwen3"), ("layer_types names 2", "num_hidden_layers is 3"),
    ),
    "layer_types over use_sliding_window": (
        {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False}, ("qwen2", "qwen3"), ("layer_types",),
    ),
    "use_sliding_window": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, ("qwen2", "qwen3"), ("use_sliding_window",),
    ),
    "sliding_window without use": (
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, ("qwen2", "qwen3"), (),
    ),
    "sliding_window of a family without": ({"sliding_window": 8}, ("llama", "glm"), ()),
    "attention_bias that the family ignores": ({"attention_bias": True}, ("qwen2",), ()),
    "attention_bias over tensors": ({"attention_bias": True}, ("llama", "qwen3"), ("attention_bias",)),
    "quantization_config over plain tensors": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}}, ALL, ("quantization_config",),
    ),
    "is_causal": ({"is_causal": False}, ALL, ("is_causal is False",)),
    "is_causal, said": ({"is_causal": True}, ("llama",), ()),
    "a type that is none": ({"dtype": {"": "float32"}}, ("llama",), ("dtype {'': 'float32'} is not supported",)),
    "a flag that is text": ({"tie_word_embeddings": "false"}, ("qwen2",), ("tie_word_embeddings is 'false', expected bool",)),
    "a kind that is a list": ({"rope_parameters": {"rope_type": ["linear"]}}, ("llama",), ("['linear'] is not supported",)),
    "an eps below zero": ({"rms_norm_eps": -1.0}, ("qwen3",), ("rms_norm_eps is -1.0",)),
    "another activation's name": ({"hidden_activation": "gelu"}, ALL, ()),
    "sampling in config.json": ({"temperature": 0.1, "top_k": 3}, ALL, ()),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ALL:
        made[kind] = tmp_path_factory.mktemp(kind)
        heads = {"head_dim": 16} if kind in ("qwen3", "glm") else {}
        make(kind, rope_parameters=dict(PLAIN), **heads).save_pretrained(made[kind])
        (made[kind] / "original.json").write_text((made[kind] / "config.json").read_text())
    return made


def logits(folder: Path) -> tuple[Tensor, str]:
    source = folder / "config.json"
    family = family_of(read_json(source), source)
    config = family.read_config(read_json(source), source)
    model = Transformer(config, family.load_weights(config, TensorDir(folder), torch.float32, "cpu"))
    return torch.stack(Rows(model, 1, IDS.shape[1]).step(IDS.tolist())), config.dtype


@pytest.mark.parametrize("name", PAIRS)
def test_places_in_config_json(folders: dict[str, Path], name: str) -> None:
    changes, kinds, refusal = PAIRS[name]
    for kind in kinds:
        folder = folders[kind]
        data = read_json(folder / "original.json") | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))
        if refusal:
            with pytest.raises(ValueError) as error:  # noqa: PT011
                logits(folder)
            assert all(word in str(error.value) for word in refusal), error.value
            continue
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = theirs(IDS, use_cache=False).logits
        got, dtype = logits(folder)
        torch.testing.assert_close(
            got, expected, rtol=0, atol=1e-4, msg=f"{kind}: {(got - expected).abs().max()}"
        )
        assert f"torch.{dtype}" == str(transformers.AutoConfig.from_pretrained(folder).dtype), kind


def test_an_output_layer_beside_a_tied_embedding(tmp_path: Path) -> None:
    model = make("qwen2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings.*lm_head\.weight differs from model\.embed_tokens\.weight"
    ):
        check_tied_head(TensorDir(tmp_path))
    model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    model.save_pretrained(tmp_path)
    check_tied_head(TensorDir(tmp_path))
    make("qwen2_yarn").save_pretrained(tmp_path / "tied")
    check_tied_head(TensorDir(tmp_path / "tied"))


# generation_config.json, config.json and the tokenizer: which ids end a reply.
ENDS: dict[str, tuple[dict[str, Any] | None, Any, Any, tuple[int, ...]]] = {
    "generation_config over config": ({"eos_token_id": [2, 0]}, 1, "<|im_start|>", (2, 0)),
    "one over a list": ({"eos_token_id": 0}, [1, 2], None, (0,)),
    "no generation_config": (None, [0, 2], "<|im_start|>", (0, 2)),
    "none in generation_config": ({"eos_token_id": None}, 2, "<|im_start|>", (2,)),
    "not in generation_config": ({"top_k": 5}, 2, "<|im_start|>", (2,)),
    "the tokenizer's": (None, None, "<|im_end|>", (2,)),
    "the tokenizer's, an object": ({"top_k": 5}, None, {"content": "<|im_start|>"}, (1,)),
    "nowhere": (None, None, None, ()),
    "the tokenizer's is no token": (None, None, "<|nobody|>", ()),
}


@pytest.mark.parametrize("name", ENDS)
def test_places_of_the_ends(tmp_path: Path, name: str) -> None:
    generation, config, of_tokenizer, expected = ENDS[name]
    save(tmp_path, "chatml")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 512, "eos_token_id": config})
    )
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"eos_token": of_tokenizer}))
    tokenizer, vocabulary = llama.load_text(tmp_path, None)
    assert vocabulary.eos == eos_ids(tmp_path, tokenizer) == expected


@pytest.mark.parametrize("key", _PROCESSORS)
def test_what_is_not_applied_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str) -> None:
    """transformers would change the draws: a warning says that nothing does here."""
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "generation_config.json"
    for neutral in (None, *_PROCESSORS[key]):
        path.write_text(json.dumps({key: neutral}))
        read_generation_config(tmp_path)
    assert not caplog.records
    path.write_text(json.dumps({key: 3}))
    read_generation_config(tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{key} 3 is not applied" in caplog.text
    if hasattr(transformers.GenerationConfig(), key):
        assert getattr(transformers.GenerationConfig(), key) in (None, *_PROCESSORS[key])


# Files of the tokenizer: where the template and the special tokens stand.
LOOP = "{{ bos_token }}{% for m in messages %}%s<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEMPLATES = {
    "jinja": LOOP.replace("%s", "J"),
    "config": LOOP.replace("%s", "C"),
    "named": LOOP.replace("%s", "N"),
}
NAMED = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATES["named"]}]
TOKENS: dict[str, dict[str, Any]] = {
    "template in a file over tokenizer_config": {"chat_template.jinja": TEMPLATES["jinja"], "chat_template": TEMPLATES["config"]},
    "template in tokenizer_config": {"chat_template": TEMPLATES["config"]},
    "named templates": {"chat_template": NAMED},
    "template in a file over named ones": {"chat_template.jinja": TEMPLATES["jinja"], "chat_template": NAMED},
    "bos in special_tokens_map alone": {
        "chat_template": TEMPLATES["config"], "bos_token": ..., "special_tokens_map.json": {"bos_token": "<|im_start|>"},
    },
    "bos in special_tokens_map too": {
        "chat_template": TEMPLATES["config"], "special_tokens_map.json": {"bos_token": {"content": "<|im_start|>"}},
    },
    "bos in special_tokens_map, added tokens listed": {
        "chat_template": TEMPLATES["config"], "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
        "special_tokens_map.json": {"bos_token": "<|im_start|>"},
    },
    "bos null": {"chat_template": TEMPLATES["config"].replace("bos_token", "bos_token or 'x'"), "bos_token": None},
    "added_tokens.json beside tokenizer.json": {"chat_template": TEMPLATES["config"], "added_tokens.json": {"<|im_start|>": 1}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_places_of_templates_and_special_tokens(tmp_path: Path, name: str) -> None:
    save(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    config = read_json(path) | {"bos_token": "<|endoftext|>"}
    for key, value in TOKENS[name].items():
        if key.endswith((".json", ".jinja")):
            (tmp_path / key).write_text(value if isinstance(value, str) else json.dumps(value))
        else:
            config[key] = value
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template([{"role": "user", "content": "the speaker"}], return_dict=False)
    tokenizer, _ = llama.load_text(tmp_path, None)
    assert chat_turn_ids(tokenizer, "the speaker", first=True) == list(expected)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "chatml")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 300, "eos_token_id": 2})
    )
    with pytest.raises(
        ValueError, match=r"token id 359 lies beyond the vocabulary of 300; tokenizer and config\.json differ"
    ):
        llama.load_text(tmp_path, None)


# Codecs, and GLM-4-Voice's two names of a setting.
MIMI_PAIRS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "rope_scaling over rope_parameters": ({"rope_scaling": PLAIN | {"rope_theta": 300.0}, "rope_parameters": PLAIN}, ()),
    "scaled in rope_scaling": ({"rope_scaling": LINEAR, "rope_parameters": PLAIN}, ("scaled",)),
    "scaled in rope_parameters": ({"rope_parameters": LINEAR}, ("scaled",)),
    "base beside and inside": ({"rope_parameters": PLAIN, "rope_theta": 300.0}, ()),
    "base beside": ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 300.0}, ()),
    "base alone": ({"rope_parameters": ..., "rope_theta": 300.0}, ()),
    "base nowhere": ({"rope_parameters": ...}, ()),
    "base of rope_parameters lost": (
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": PLAIN | {"rope_theta": 300.0}}, ("rope_theta 300.0",),
    ),
    "frame_rate over the ratios": ({"frame_rate": 12.5}, ()),
    "frame_rate twice": ({"frame_rate": 12.5, "_frame_rate": 12.5}, ()),
    "two frame rates": ({"frame_rate": 12.5, "_frame_rate": 25.0}, ("frame_rate is 12.5", "_frame_rate is 25.0")),
    "head_dim null": ({"head_dim": None}, ()),
    "head_dim over hidden_size": ({"head_dim": 6}, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", MIMI_PAIRS)
def test_places_in_mimis_config(tmp_path: Path, name: str) -> None:
    changes, refusal = MIMI_PAIRS[name]
    data = transformers.MimiConfig(**MIMI).to_dict() | changes
    data = {
        key: value
        for key, value in data.items()
        if value is not ... and (key in changes or key != "_frame_rate")
    }
    if refusal:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read_mimi(data, "config.json")
        assert all(word in str(error.value) for word in refusal), error.value
        return
    (tmp_path / "config.json").write_text(json.dumps(data))
    theirs, ours = transformers.MimiConfig.from_pretrained(tmp_path), read_mimi(data, "config.json")
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.downsample == theirs.latent_stride
    assert (ours.head_dim, ours.codebook_dim) == (theirs.head_dim, theirs.codebook_dim)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 8), ("hop_length", 7), ("upsampling_ratios", [2, 4])]
)
def test_what_dac_derives_is_not_said_otherwise(key: str, value: Any) -> None:
    data = transformers.DacConfig(**DAC).to_dict()
    assert read_dac(data, "config.json").frame_len == data["hop_length"]
    with pytest.raises(ValueError, match=rf"{key} is .* but downsampling_ratios \[2, 4\]"):
        read_dac(data | {key: value}, "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("sampling_rate", 16000), ("feature_size", 2), ("chunk_length_s", 1.0), ("overlap", 0.5), ("hop_length", 7)],
)  # fmt: skip
def test_a_preprocessor_of_other_sound_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    data = {
        "model_type": "x",
        "sampling_rate": 24000,
        "audio_channels": 1,
        "chunk_length_s": 2.0,
        "overlap": 0.1,
        "hop_length": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(data))
    path = tmp_path / "preprocessor_config.json"
    agreeing = without(data, "model_type", "audio_channels") | {"feature_size": 1, "padding_value": 0.0}
    for content in ({}, agreeing, {key: None}):
        path.write_text(json.dumps(content))
        assert read_codec_json(tmp_path)[1] == data
    path.write_text(json.dumps({key: value}))
    with pytest.raises(
        ValueError, match=rf"preprocessor_config\.json: {key} is {value}, and .* of config\.json"
    ):
        read_codec_json(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("num_layers", "num_hidden_layers"), ("padded_vocab_size", "vocab_size"), ("ffn_hidden_size", "intermediate_size"),
     ("layernorm_epsilon", "rms_norm_eps"), ("seq_length", "max_position_embeddings"), ("kv_channels", "head_dim")],
)  # fmt: skip
def test_the_two_names_of_a_setting(tiny_dir: Path, first: str, second: str) -> None:
    source = tiny_dir / "glm-4-voice-9b" / "config.json"
    data = read_json(source)
    family = family_of(data, source)
    expected = family.read_config(data, source)
    assert family.read_config(data | {second: data[first]}, source) == expected
    assert family.read_config(data | {second: None}, source) == expected
    with pytest.raises(ValueError, match=rf"{first} is .* and {second} is .*they are one setting"):
        family.read_config(data | {second: data[first] * 2}, source)
    assert (
        family.read_config(data | {"dtype": "float16", "torch_dtype": "float32"}, source).dtype == "float16"
    )
