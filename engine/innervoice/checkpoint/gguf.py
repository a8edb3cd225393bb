"""A GGUF file's metadata as the text files of a checkpoint directory, in which it is called model.gguf.

Such a directory may also be made by hand, from the model's own config.json and
tokenizer files and its GGUF file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from innervoice.checkpoint.gguf_file import GgufFile

MODEL = "model.gguf"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_BY_HAND = f"put the file as {MODEL} into a directory with the model's own config.json, tokenizer.json and tokenizer_config.json"
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # GGUF's types of tokens that stand beside the pairs
_FORMAT = 3  # of the files that are made; a file in the cache that another version made is not read
# Keys of an architecture that change what a model computes, and the values with which they do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.factor": (0, 1), "rope.scale_linear": (0, 1), "rope.scaling.attn_factor": (0, 1), "attention.causal": (True,),
    "attention.clamp_kqv": (0,), "attention.max_alibi_bias": (0,), "attention.scale": (0,), "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,), "logit_scale": (0, 1), "embedding_scale": (0, 1), "residual_scale": (0, 1),
    "use_parallel_residual": (False,), "attention.sliding_window": (0,),
}  # fmt: skip
_CASES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def unpack(path: Path) -> Path:
    """A directory for a .gguf file, in the user's cache; made once.

    Raises ValueError for a model that is not run from GGUF.
    """
    path = path.resolve()
    stat = path.stat()
    identity = f"{_FORMAT} {path} {stat.st_size} {stat.st_mtime_ns}"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "innervoice" / "gguf"
    except RuntimeError:  # no HOME, and no entry for the user
        raise OSError(f"there is no home directory for a cache: set XDG_CACHE_HOME, or {_BY_HAND}") from None
    folder = cache / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    files = text_files(GgufFile.read(path))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=cache, prefix="."))
    except OSError as error:
        raise OSError(
            f"cannot write to {cache} ({error.strerror}): set XDG_CACHE_HOME, or {_BY_HAND}"
        ) from None
    try:
        for name, content in files.items():
            (part / name).write_text(json.dumps(content), encoding="utf-8")
        (part / MODEL).symlink_to(path)
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def text_files(file: GgufFile) -> dict[str, dict[str, Any]]:
    """config.json and what stands beside it, by name.

    Raises ValueError for a model that is not run from GGUF.
    """
    data, path = file.fields, file.path
    config = _config(data, file.tensors.keys(), path)
    return {
        "config.json": config,
        "generation_config.json": {"eos_token_id": config["eos_token_id"]},
        "tokenizer.json": _tokenizer(data, path),
        "tokenizer_config.json": _chat(data, path),
    }


def _config(data: Mapping[str, Any], tensors: Set[str], path: Path) -> dict[str, Any]:
    kind = _required({"general.architecture": "none", **data}, "general.architecture", path, str)
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )

    def of(key: str) -> Any:
        return _required(data, f"{kind}.{key}", path, (int, float))

    if data.get(f"{kind}.expert_count"):
        raise ValueError(f"{path}: {data[f'{kind}.expert_count']} experts are not supported")
    scaled = data.get(f"{kind}.rope.scaling.type", "none") != "none"
    if scaled or "rope_freqs.weight" in tensors:
        raise ValueError(f"{path}: scaled rotary positions are not read from GGUF: {_BY_HAND}")
    _refuse_dropped(data, kind, path)
    width, heads = of("embedding_length"), of("attention.head_count")
    if heads < 1:
        raise ValueError(f"{path}: {kind}.attention.head_count is {heads}, which is not supported")
    head_dim = data.get(f"{kind}.attention.key_length", width // heads)
    if data.get(f"{kind}.rope.dimension_count", head_dim) != head_dim:
        raise ValueError(
            f"{path}: {kind}.rope.dimension_count is not the width of a head, {head_dim}, which is not supported"
        )
    if data.get(f"{kind}.attention.value_length", head_dim) != head_dim:
        raise ValueError(
            f"{path}: {kind}.attention.value_length is not the width of a key, {head_dim}, which is not supported"
        )
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": data.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": float(
            f"{of('attention.layer_norm_rms_epsilon'):.6g}"
        ),  # a float32 there, 1e-05 for 9.99999974e-06
        "rope_theta": data.get(f"{kind}.rope.freq_base", 10000.0),
        "max_position_embeddings": of("context_length"),
        "vocab_size": len(_listed(data, "tokenizer.ggml.tokens", path, str)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": data.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(data, path),
    }


def _refuse_dropped(data: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raise ValueError for a setting that the runtimes of the format apply and this one does not."""
    for key, neutral in _NEUTRAL.items():
        value = data.get(f"{kind}.{key}", neutral[0])
        if value not in neutral:
            raise ValueError(f"{path}: {kind}.{key} is {value}, which is not supported: {_BY_HAND}")


def _ends(data: Mapping[str, Any], path: Path) -> list[int]:
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    ends = [_required(data, key, path, int) for key in keys if data.get(key) is not None]
    return list(dict.fromkeys(ends))


def _tokenizer(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Byte-level pairs as tokenizer.json has them."""
    named = {"tokenizer.ggml.model": "none", "tokenizer.ggml.pre": "gpt-2", **data}
    kind, pre = (_required(named, f"tokenizer.ggml.{name}", path, str) for name in ("model", "pre"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = {
        "gpt-2": [byte_level],
        "smollm": [{"type": "Digits", "individual_digits": True}, byte_level],
        "llama-bpe": [_split(_WORDS % "{1,3}"), byte_level | {"use_regex": False}],
        "qwen2": [_split(_WORDS % ""), byte_level | {"use_regex": False}],
    }
    if kind != "gpt2" or pre not in steps:
        raise ValueError(
            f"{path}: tokenizer {kind!r} with splitting {pre!r} is not read from GGUF: {_BY_HAND}"
        )
    tokens, merges = (_listed(data, f"tokenizer.ggml.{name}", path, str) for name in ("tokens", "merges"))
    types = _listed(data, "tokenizer.ggml.token_type", path, int)
    if len(tokens) != len(types):
        raise ValueError(f"{path}: {len(tokens)} tokens have {len(types)} types: download it again")
    # Ids up to a rounded size that have no token: they are no text, whatever their type.
    padding = {
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _UNUSED or token == f"[PAD{i}]"
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **flags, "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and i not in padding
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[pre]},
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
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens) if i not in padding},
            "merges": merges,
        },
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _chat(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    tokens = data["tokenizer.ggml.tokens"]
    ids = {f"{name}_token": data.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    beyond = [i for i in ids.values() if i is not None and not (isinstance(i, int) and 0 <= i < len(tokens))]
    if beyond:
        raise ValueError(f"{path}: token id {beyond[0]!r} is none of {len(tokens)} tokens: download it again")
    made: dict[str, Any] = {name: tokens[i] for name, i in ids.items() if i is not None}
    if "tokenizer.chat_template" in data:
        made["chat_template"] = data["tokenizer.chat_template"]
    return {"tokenizer_class": "PreTrainedTokenizerFast", **made}


def _required(data: Mapping[str, Any], key: str, path: Path, kinds: type | tuple[type, ...]) -> Any:
    """A field of one of these types. Raises ValueError."""
    if key not in data:
        raise ValueError(f"{path}: key {key!r} is missing: {_BY_HAND}")
    value = data[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{path}: {key} is {type(value).__name__}, which is not supported: {_BY_HAND}")
    return value


def _listed(data: Mapping[str, Any], key: str, path: Path, kind: type) -> list[Any]:
    """A field that is a list of one type. Raises ValueError."""
    values: list[Any] = _required(data, key, path, list)
    if not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{path}: {key} is no list of {kind.__name__}, which is not supported: {_BY_HAND}")
    return values
