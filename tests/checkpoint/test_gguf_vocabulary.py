"""The vocabulary of a GGUF file: ids without a token are no text, other versions' files in the cache are not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from innervoice.checkpoint import gguf as gguf_text
from innervoice.checkpoint.files import read_json
from innervoice.model.text import JsonTokenizer

gguf = pytest.importorskip("gguf", reason="`pip install gguf` writes the files")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def write(path: Path, *more: tuple[str, int], architecture: str = "qwen2") -> Path:
    """A file of 256 bytes as text, three control tokens, and more."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    tokens = [*((letters[i], NORMAL) for i in range(256)), ("th", NORMAL)]
    tokens += [(name, CONTROL) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    tokens += more
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(259)
    writer.add_uint32("tokenizer.ggml.eom_token_id", 257)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, UNUSED])
def test_padding_is_no_text_and_no_obstacle(tmp_path: Path, kind: int) -> None:
    """Qwen's vocabularies are padded past their tokens: [PAD259] and so on, of one type or another."""
    padding = [(f"[PAD{i}]", kind) for i in range(263, 271)]
    more = [("<tool_call>", USER_DEFINED), ("2012-7", USER_DEFINED), ("<x>", UNUSED)]
    folder = gguf_text.unpack(write(tmp_path / "model.gguf", *more, *padding))
    tokenizer = JsonTokenizer.from_pretrained(folder)
    assert tokenizer.text_range == (0, 257)
    assert tokenizer.words == ((261, 262),)
    assert tokenizer.encode("a2012-7") == [ord("a"), 261]
    assert all(i < 257 for i in tokenizer.encode("[PAD263] <x> <tool_call>"))
    assert all(tokenizer.token_bytes(i) == b"" for i in (260, *range(262, 271)))
    config = read_json(folder / "config.json")
    assert (config["vocab_size"], config["eos_token_id"]) == (271, [259, 257])


def test_a_cache_of_another_version_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version made of a file, and may have refused, is left alone."""
    path = write(tmp_path / "model.gguf")
    monkeypatch.setattr(gguf_text, "_FORMAT", 1)
    older = gguf_text.unpack(path)
    (older / "tokenizer.json").write_text("{}")
    assert gguf_text.unpack(path) == older
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    newer = gguf_text.unpack(path)
    assert newer != older
    assert JsonTokenizer.from_pretrained(newer).text_range == (0, 257)
