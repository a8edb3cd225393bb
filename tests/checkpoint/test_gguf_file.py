"""GGUF's metadata: every type of value as the gguf library reads it, and damaged files refused in a sentence."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import gguf_bytes
import numpy as np
import pytest
from gguf_bytes import entry, field, string, u32, u64
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.checkpoint.gguf import text_files
from innervoice.checkpoint.gguf_file import BLOCK_TYPES, GgufFile

EXTREMES: dict[str, list[Any]] = {
    "u8": [0, 255], "i8": [-128, 127], "u16": [0, 65535], "i16": [-(2**15), 2**15 - 1], "u32": [0, 2**32 - 1],
    "i32": [-(2**31), 2**31 - 1], "f32": [0.1, -3e38, float("inf")], "bool": [0, 1, 2], "u64": [0, 2**64 - 1],
    "i64": [-(2**63), 2**63 - 1], "f64": [0.1, 1e300], "str": ["", "Gr\u00fc\u00dfe \U0001f600"],
}  # fmt: skip


def write(folder: Path, data: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return path


def small(**more: Any) -> bytes:
    """A file with a field of each kind and a tensor of each supported number of bytes a block."""
    fields = [
        field("one", "u16", 3),
        field("words", "[str]", ["a", "", "bcd"]),
        field("deep", "[[i32]]", [[1, 2], [], [3]]),
        field("name", "str", "n"),
    ]
    entries = [entry("q", (2, 32), 8, 0), entry("x", (3,), 0, 96)]
    return gguf_bytes.file(fields, entries, bytes(range(108)), **more)


def library(path: Path) -> Any:
    return pytest.importorskip("gguf", reason="`pip install gguf`: the reader to compare with").GGUFReader(
        path
    )


def test_every_type_of_value_is_as_the_gguf_library_reads_it(tmp_path: Path) -> None:
    fields = [
        field(f"{kind}.{i}", kind, one) for kind, made in EXTREMES.items() for i, one in enumerate(made)
    ]
    fields += [field(f"{kind}s", f"[{kind}]", made) for kind, made in EXTREMES.items()]
    fields += [field(f"{kind}.none", f"[{kind}]", []) for kind in EXTREMES]
    fields += [field(f"{kind}.nested", f"[[{kind}]]", [made, made]) for kind, made in EXTREMES.items()]
    path = write(tmp_path, gguf_bytes.file(fields))
    found = GgufFile.read(path).fields
    assert found["str.1"] == EXTREMES["str"][1] and found["u64s"] == EXTREMES["u64"]
    assert found["i16.nested"] == EXTREMES["i16"] * 2 and found["bools"] == [False, True, True]
    theirs = {key: value.contents() for key, value in library(path).fields.items() if "GGUF." not in key}
    assert found == theirs
    assert [type(one) for one in found.values()] == [type(one) for one in theirs.values()]


def test_tensors_of_every_type_are_as_the_gguf_library_has_them(tmp_path: Path) -> None:
    entries, data = [], b""
    for number, (name, numbers, num_bytes) in BLOCK_TYPES.items():
        entries.append(entry(name, (3, 2 * numbers), number, len(data)))
        data += np.random.default_rng(number).bytes(6 * num_bytes)
        data += bytes(-len(data) % 32)
    path = write(
        tmp_path, gguf_bytes.file([field("general.alignment", "u32", 64)], entries, b"?" * 32 + data)
    )
    ours = GgufFile.read(path)
    theirs = {tensor.name: tensor for tensor in library(path).tensors}
    for name, tensor in ours.tensors.items():
        other = theirs[name]
        assert (tensor.kind, tensor.start, tensor.num_bytes) == (
            other.tensor_type.name,
            other.data_offset,
            other.n_bytes,
        )
        assert tensor.shape == tuple(reversed(other.shape.tolist()))
        assert ours.blocks(tensor).tobytes() == other.data.tobytes()
    assert ours.tensors.keys() == theirs.keys()


VALUES = st.deferred(
    lambda: st.sampled_from(sorted(EXTREMES)).flatmap(
        lambda kind: st.tuples(st.just(f"[{kind}]"), st.lists(st.sampled_from(EXTREMES[kind])))
    )
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_fields_come_back(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    made.pop("general.alignment", None)
    path = write(folder, gguf_bytes.file([field(key, *value) for key, value in made.items()], version=2))
    found = GgufFile.read(path).fields
    expected = {
        key: np.array(value, np.float32).tolist()
        if kind == "[f32]"
        else [bool(x) for x in value]
        if kind == "[bool]"
        else value
        for key, (kind, value) in made.items()
    }
    assert found == expected


def refusal(path: Path) -> str | None:
    """The sentence that refuses a file, None where it is read; without its texts it is refused alike."""
    try:
        GgufFile.read(path)
    except ValueError as error:
        if "UTF-8" not in str(error):
            with pytest.raises(ValueError, match="cannot be read as GGUF"):
                GgufFile.read(path, texts=False)
        text = str(error)
        assert text.startswith(f"{path} cannot be read as GGUF (") and len(text) < len(str(path)) + 250, text
        assert "\n" not in text and text.endswith(
            ("download it again", "again", "little-endian", "another type")
        ), text
        return text
    return None


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = small()
    assert refusal(write(tmp_path, whole)) is None
    for length in range(len(whole)):
        assert refusal(write(tmp_path, whole[:length])), length


def test_damaged_files_are_refused_and_nothing_large_is_allocated(tmp_path: Path) -> None:
    """Every eight and four bytes replaced by huge numbers, and bytes at random by others."""
    whole, draw = small(), random.Random(0)
    made = [
        whole[:at] + huge + whole[at + len(huge) :]
        for at in range(8, 220, 3)
        for huge in (b"\xff" * 8, u64(2**62), u64(2**40), u32(2**31), u32(9))
    ]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(220)] = draw.randrange(256)
        made.append(bytes(data))
    tracemalloc.start()
    refused = sum(refusal(write(tmp_path, data)) is not None for data in made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > len(made) / 3
    assert peak < 4e6


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + u32(3)[::-1] + bytes(16), "big-endian"),
        (small(version=1), "version 1, and 2 and 3"),
        (b"GGUF" + u32(3) + u64(0) + u64(2**63), r"announces 9223372036854775808 fields"),
        (b"GGUF" + u32(3) + u64(2**60) + u64(0), "announces 1152921504606846976 tensors"),
        (gguf_bytes.file([string("a") + u32(9) + u32(0) + u64(10**9)]), "announces 1000000000 values of an array"),
        (gguf_bytes.file([string("a") + u32(13) + bytes(8)]), "a value is of unknown type 13"),
        (gguf_bytes.file([field("a", "[[[[[u8]]]]]", [[[[[1]]]]])]), "nested more than 4 deep"),
        (gguf_bytes.file([field("a", "u8", 1)] * 2), "key 'a' comes twice"),
        (gguf_bytes.file([string("a") + u32(8) + u64(2) + b"\xff\xfe"]), "is not UTF-8"),
        (gguf_bytes.file([field("general.alignment", "u32", 48)]), "general.alignment is no power of two"),
        (gguf_bytes.file([field("general.alignment", "u64", 64)]), "general.alignment is no power of two"),
        (gguf_bytes.file([], [entry("t", (1,) * 5, 0, 0)], bytes(4)), "tensor 't' has 5 dimensions"),
        (gguf_bytes.file([], [entry("t", (4,), 99, 0)], bytes(16)), "tensor 't' is of unknown type 99"),
        (gguf_bytes.file([], [entry("t", (33,), 8, 0)], bytes(99)), "not blocks of 32"),
        (gguf_bytes.file([], [entry("t", (2**62, 2**62), 0, 0)], bytes(99)), "tensor 't' ends at byte"),
        (gguf_bytes.file([], [entry("t", (1,), 0, 0)] * 2, bytes(4)), "tensor 't' comes twice"),
    ],
)  # fmt: skip
def test_each_damage_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    text = refusal(write(tmp_path, data))
    assert text is not None and words in text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"m\.gguf does not exist"):
        GgufFile.read(tmp_path / "m.gguf")


MODEL: dict[str, tuple[str, Any]] = {
    "general.architecture": ("str", "llama"),
    "llama.embedding_length": ("u32", 64), "llama.feed_forward_length": ("u32", 64), "llama.block_count": ("u32", 1),
    "llama.attention.head_count": ("u32", 2), "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    "llama.context_length": ("u32", 64), "tokenizer.ggml.model": ("str", "gpt2"),
    "tokenizer.ggml.tokens": ("[str]", ["a", "b"]), "tokenizer.ggml.token_type": ("[i32]", [1, 3]),
    "tokenizer.ggml.merges": ("[str]", []), "tokenizer.ggml.eos_token_id": ("u32", 1),
}  # fmt: skip


def converted(folder: Path, **changes: tuple[str, Any] | None) -> dict[str, Any]:
    fields = {**MODEL, **{key.replace("__", "."): value for key, value in changes.items()}}
    made = [field(key, *value) for key, value in fields.items() if value is not None]
    return text_files(GgufFile.read(write(folder, gguf_bytes.file(made))))


@pytest.mark.parametrize("key", sorted(set(MODEL) - {"tokenizer.ggml.eos_token_id"}))
@pytest.mark.parametrize("value", [None, ("[i32]", [1, 2]), ("str", "x"), ("bool", 1)], ids=str)
def test_fields_that_are_missing_or_of_another_type_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    assert converted(tmp_path)["config.json"]["hidden_size"] == 64
    if (key, value) == ("tokenizer.ggml.token_type", ("[i32]", [1, 2])):
        value = ("[[i32]]", [[1, 3, 1]])  # a list is right here, but not of three
    with pytest.raises(ValueError, match=r"m\.gguf: .*(support|missing|GGUF|types)"):
        converted(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer__ggml__token_type": ("[i32]", [1])}, "2 tokens have 1 types"),
        ({"tokenizer__ggml__eos_token_id": ("u32", 2)}, "token id 2 is none of 2 tokens"),
        ({"tokenizer__ggml__bos_token_id": ("i32", -1)}, "token id -1 is none of 2 tokens"),
        ({"llama__attention__head_count": ("u32", 0)}, "head_count is 0"),
        ({"tokenizer__ggml__eos_token_id": ("[u32]", [1])}, "eos_token_id is list"),
        ({"tokenizer__ggml__eot_token_id": ("str", "b")}, "eot_token_id is str"),
        ({"llama__attention__value_length": ("u32", 16)}, "value_length is not the width of a key, 32"),
        ({"llama__rope__scaling__factor": ("f32", 4.0)}, r"rope\.scaling\.factor is 4\.0"),
        ({"llama__rope__scale_linear": ("f32", 2.0)}, r"rope\.scale_linear is 2\.0"),
        ({"llama__attention__causal": ("bool", 0)}, r"attention\.causal is False"),
        ({"llama__final_logit_softcapping": ("f32", 30.0)}, r"final_logit_softcapping is 30\.0"),
        ({"llama__attention__sliding_window": ("u32", 8)}, r"attention\.sliding_window is 8"),
    ],
)
def test_fields_that_do_not_fit_together_or_would_be_dropped_are_refused(
    tmp_path: Path, changes: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        converted(tmp_path, **changes)
