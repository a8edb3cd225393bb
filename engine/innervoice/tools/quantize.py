"""A checkpoint's language model with its weights quantised, as a directory of its own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from innervoice.api.configs import Configs, read_configs
from innervoice.api.memory_plan import DTYPES
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.quantization import KEY, Quantization
from innervoice.checkpoint.safetensors import SINGLE, TensorDir
from innervoice.checkpoint.safetensors_writer import Layout, TensorWriter
from innervoice.codec.audio_encoder import read_tensors
from innervoice.files import replacing
from innervoice.model.gguf_source import GgufSource
from innervoice.model.lanes import LanedWeight
from innervoice.model.quant import Quantized, empty, num_bytes, row_blocks, rows_of, tensors_of
from innervoice.model.quant_source import METADATA, BlankSource, QuantizingSource, describe

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@dataclass(frozen=True)
class Written:
    """One tensor as it was written.

    error: of the quantised weight, ||w' - w|| / ||w||; None where it was left as it was.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    num_bytes: int
    error: float | None


class Quantizer:
    """Quantises the language model of a checkpoint.

    Raises FileNotFoundError, ValueError when it cannot be, before it begins.
    """

    def __init__(self, paths: CheckpointPaths, out: Path, to: Quantization) -> None:
        self.folder = paths.model
        self.out = out
        self.to = to
        configs = read_configs(paths)
        if configs.quantization is not None:
            raise ValueError(
                f"{self.folder} is quantised already, as {configs.quantization}: give the model that it was made from"
            )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not an empty directory: name another")
        if not out.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {out}: there is no directory {out.absolute().parent}, so create it"
            )
        self._dtype = DTYPES[configs.model.dtype]
        file = self.folder / MODEL
        gguf = GgufSource(file) if file.exists() else None
        if gguf is not None:
            configs.family.load_weights(configs.model, gguf.blank(), self._dtype, "meta")
            gguf.check_all_read()
        self._source = QuantizingSource(gguf or TensorDir(self.folder), to)
        self._wanted = _wanted(configs, to, self._dtype)

    def __len__(self) -> int:
        return len(self._wanted.names)

    def run(self) -> Iterator[Written]:
        """Write the directory, tensor by tensor; it is there when the last one has been taken, and nothing is
        left otherwise.

        Raises ValueError naming a tensor that is missing, misshapen, or not finite.
        """
        with replacing(self.out, folder=True) as part:
            part.mkdir()
            self._copy_texts(part)
            with TensorWriter(part / SINGLE, self._layouts(), self._metadata()) as writer:
                for name in self._wanted.names:
                    yield self._write(name, writer)

    def _write(self, name: str, writer: TensorWriter) -> Written:
        shape, is_quantised = self._wanted.names[name]
        if not is_quantised:
            tensor = self._source.get(name, shape, dtype=self._dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"{self.folder}: tensor {name} holds NaN or infinity: the weights are damaged, take them anew"
                )
            writer.write(name, tensor)
            return Written(name, str(self._dtype).removeprefix("torch."), shape, num_bytes(tensor), None)
        weight = self._source.weight(name, shape, dtype=self._dtype, device="cpu", head=False)
        assert not isinstance(weight, Tensor | LanedWeight)
        for field, tensor in tensors_of(weight).items():
            writer.write(f"{name}.{field}", tensor)
        return Written(
            name, self.to.format, shape, num_bytes(weight), _error(weight, self._source.get(name, shape))
        )

    def _layouts(self) -> dict[str, Layout]:
        layouts = {}
        for name, (shape, is_quantised) in self._wanted.names.items():
            if is_quantised:
                for field, blank in tensors_of(empty((shape[0], shape[1]), self.to, "meta")).items():
                    layouts[f"{name}.{field}"] = Layout(blank.dtype, tuple(blank.shape))
            else:
                layouts[name] = Layout(self._dtype, shape)
        return layouts

    def _metadata(self) -> dict[str, str]:
        quantised = {
            name: shape for name, (shape, is_quantised) in self._wanted.names.items() if is_quantised
        }
        weights = {
            name: describe(empty((shape[0], shape[1]), self.to, "meta")) for name, shape in quantised.items()
        }
        return {"format": "pt", METADATA: json.dumps(weights)}

    def _copy_texts(self, target: Path) -> None:
        """Copy all files but the weights, and note the quantisation in config.json."""
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, target / file.name)
        config = read_json(self.folder / "config.json") | {KEY: self.to.to_config()}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _wanted(configs: Configs, to: Quantization, dtype: torch.dtype) -> BlankSource:
    """What the model reads, and which of it is quantised: an audio encoder stays as it is."""
    blank = BlankSource(to)
    configs.family.load_weights(configs.model, blank, dtype, "meta")
    if configs.encoder is not None:
        read_tensors(configs.encoder, blank, dtype, "meta")
    return blank


def _error(weight: Quantized, right: Tensor) -> float:
    """||w' - w|| / ||w||, row block by row block."""
    first = 0
    wrong = 0.0
    size = 0.0
    for block in row_blocks(right):
        got = rows_of(weight, torch.arange(first, first + len(block), dtype=torch.int64, device="cpu"))
        assert not isinstance(got, Tensor)
        wrong += (got.dequantize() - block.float()).square().sum().item()
        size += block.float().square().sum().item()
        first += len(block)
    return math.sqrt(wrong / size) if size else 0.0
