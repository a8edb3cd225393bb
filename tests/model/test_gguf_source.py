"""Weights of GGUF files: read in pieces, and none left over."""

from __future__ import annotations

from pathlib import Path

import gguf_bytes
import numpy as np
import pytest
from gguf_bytes import entry

from innervoice.checkpoint.gguf_file import BLOCK_TYPES
from innervoice.model import gguf_source
from innervoice.model.gguf_source import GgufSource

NUMBERS = {name: number for number, (name, _, _) in BLOCK_TYPES.items()}
WIDTH = 64


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A file of random small numbers: of float16 scales the exponent is never the largest."""
    entries, data, draw = [], b"", np.random.default_rng(0)
    for name, (kind, shape) in tensors.items():
        block = BLOCK_TYPES[NUMBERS[kind]]
        entries.append(entry(name, shape, NUMBERS[kind], len(data)))
        bits = draw.integers(0, 256, int(np.prod(shape)) // block.numbers * block.num_bytes, dtype=np.uint8)
        data += (bits & 0x3B).tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(gguf_bytes.file([], entries, data))
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_a_tensor_in_pieces_has_the_numbers_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = GgufSource(write(tmp_path / "m.gguf", {"token_embd.weight": (kind, (37, 256))}))
    whole = source.get("model.embed_tokens.weight", (37, 256))
    monkeypatch.setattr(gguf_source, "_PIECE", 1500)
    assert source.get("model.embed_tokens.weight", (37, 256)).equal(whole)
    assert len(set(whole.flatten().tolist())) > 50


def test_a_norm_in_blocks_is_read(tmp_path: Path) -> None:
    source = GgufSource(write(tmp_path / "m.gguf", {"output_norm.weight": ("Q8_0", (WIDTH,))}))
    assert source.get("model.norm.weight", (WIDTH,)).shape == (WIDTH,)


@pytest.mark.parametrize("name", ["blk.7.attn_q.weight", "blk.0.attn_q.bias", "blk.0.attn_sub_norm.weight"])
def test_a_tensor_that_nothing_reads_is_refused(tmp_path: Path, name: str) -> None:
    tensors = {"output_norm.weight": ("F32", (WIDTH,)), "blk.0.attn_rot_embd": ("F32", (8,))}
    source = GgufSource(write(tmp_path / "m.gguf", tensors))
    source.blank().get("model.norm.weight", (WIDTH,))
    source.check_all_read()
    source = GgufSource(write(tmp_path / "n.gguf", {**tensors, name: ("F32", (WIDTH,))}))
    source.blank().get("model.norm.weight", (WIDTH,))
    with pytest.raises(ValueError, match=rf"n\.gguf: tensor {name} has no place in this model"):
        source.check_all_read()


def test_a_file_that_is_cut_off_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"token_embd.weight": ("F32", (37, 256))})
    source = GgufSource(path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"was cut off while it was read, in tensor token_embd\.weight"):
        source.get("model.embed_tokens.weight", (37, 256))
