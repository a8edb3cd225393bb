"""Reading safetensors: one file, shards, and every way in which they can be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from innervoice.checkpoint.safetensors import DummyTensors, TensorDir, TensorFile

A = torch.arange(6, dtype=torch.float32).reshape(2, 3)
B = torch.arange(4, dtype=torch.bfloat16)
C = torch.arange(4, dtype=torch.int8)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file({"a": A, "b": B, "c": C}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": A}, tmp_path / "model-1.safetensors")
    save_file({"b": B}, tmp_path / "model-2.safetensors")
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_one_file_gives_its_tensors(single: Path) -> None:
    file = TensorFile(single / "model.safetensors")
    assert sorted(file.names()) == ["a", "b", "c"] and "a" in file and "z" not in file
    assert file.shape("a") == (2, 3)
    assert torch.equal(file.get("a", (2, 3)), A)
    assert torch.equal(file.get("b"), B)
    assert file.get("b", dtype=torch.float32).dtype == torch.float32


def test_shards_and_one_file_read_alike(single: Path, sharded: Path) -> None:
    (single / "model.safetensors").unlink()
    tensors = TensorDir(sharded)
    assert sorted(tensors.names()) == ["a", "b"] and "b" in tensors
    assert torch.equal(tensors.get("a", (2, 3), dtype=torch.float16), A.half())
    assert tensors.shape("b") == (4,)


def test_missing_tensor_is_named(single: Path) -> None:
    for source in (TensorFile(single / "model.safetensors"), TensorDir(single)):
        with pytest.raises(ValueError, match="tensor z is missing"):
            source.get("z", (1,))


def test_wrong_shape_says_both(single: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor a has shape \[2, 3\], expected \[3, 2\]"):
        TensorDir(single).get("a", (3, 2))


def test_integers_are_no_weights(single: Path) -> None:
    with pytest.raises(ValueError, match="tensor c holds int8"):
        TensorDir(single).get("c", dtype=torch.float32)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_truncated_file_is_refused(single: Path, keep: int) -> None:
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"model\.safetensors cannot be read as safetensors .*download it again"
    ):
        TensorDir(single)


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(ValueError, match="download it again"):
        TensorDir(tmp_path)


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        TensorDir(tmp_path)


@pytest.mark.parametrize("name", ["", "absent"])
def test_directory_without_weights_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"
    ):
        TensorDir(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors does not exist"):
        TensorFile(tmp_path / "x.safetensors")


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2\.safetensors does not exist"):
        TensorDir(sharded)


def test_index_that_disagrees_with_its_shard_is_refused(sharded: Path) -> None:
    write_index(sharded, {"a": "model-2.safetensors"})
    with pytest.raises(ValueError, match=r"tensor a is in model-2\.safetensors, which lacks it"):
        TensorDir(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, {"a": "../model-1.safetensors"}, {"a": "/x"}])
def test_damaged_index_is_refused(sharded: Path, weight_map: object) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(ValueError, match=r"index\.json: weight_map"):
        TensorDir(sharded)


def test_index_that_is_no_json_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        TensorDir(sharded)


def test_dummy_tensors_depend_on_name_and_seed_alone() -> None:
    first, again, other = DummyTensors(3), DummyTensors(3), DummyTensors(4)
    again.get("y.weight", (5, 5))
    x = first.get("x.weight", (64, 64))
    assert torch.equal(x, again.get("x.weight", (64, 64)))
    assert not torch.equal(x, other.get("x.weight", (64, 64)))
    assert not torch.equal(x, first.get("y.weight", (64, 64)))
    assert abs(x.std().item() - 0.02) < 1e-3 and abs(x.mean().item()) < 2e-3


def test_dummy_vectors_are_neutral() -> None:
    dummy = DummyTensors()
    assert torch.equal(
        dummy.get("layer_norm.weight", (8,), dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    )
    assert torch.equal(dummy.get("weight_g", (8, 1, 1)), torch.ones(8, 1, 1))
    assert torch.equal(dummy.get("fc.bias", (8,)), torch.zeros(8))
    assert dummy.get("classifier.weight", (1, 8)).std().item() > 0
