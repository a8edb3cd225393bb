"""The decode step and the prefill of GLM-4-Voice's shape, against the ceilings and the peers (goals G1, G2, G3, G7).

On a GPU at 9B with random weights, 2,048 tokens of context. On a CPU it is bench.decode_cpu, with its arguments; with
--part it runs there too, over a small model, to be tested.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench import decode_cpu
from bench.ceilings import measure
from bench.peers import static_decode, transformers_glm
from bench.record import Record, Times, device_name, gpu_state, interleaved, parser, report
from bench.shapes import GLM_4_VOICE, SMALL, random_model

from innervoice.telemetry.trace import Tracer
from innervoice.tools.decode_bench import DecodeModel, Loop, make_loop, step_bytes, step_flops, time_prefill

CRIPPLED = 0.70  # of the copy's bandwidth: below it a compiled peer proves nothing
INNER = 8  # steps between two marks
GRAPHED = "static cache, CUDA graph"
PROVISIONAL = "a first estimate: the peer is captured, and not compiled yet"
OF_PEERS = {GRAPHED: "G2", "torch.compile static cache": "G2", "transformers eager": "G3"}


def doubt(peer: str, share_of_copy: float) -> str | None:
    """The reason why a peer's time says little: it is not compiled yet, or reaches too little of a copy's bandwidth for it."""
    if peer == GRAPHED:
        return PROVISIONAL
    if "compile" in peer and share_of_copy < CRIPPLED:
        return f"the peer reaches {share_of_copy:.2f} of the copy's bandwidth, under {CRIPPLED}"
    return None


class Decode:
    """The measurements of one model on one device."""

    def __init__(self, device: str, quick: bool, part: str = "all") -> None:
        self.device, self.quick, self.part = device, quick, part
        self.on_gpu = device == "cuda"
        self.context = 2048 if self.on_gpu else 128
        self.batches = [1, 8, 32, 64, 128, 256] if self.on_gpu else [1, 4]
        self.prompts = [500, 1000, 2000] if self.on_gpu else [100]
        if part == "first":
            self.batches, self.prompts = [1, 8, 32, 128] if self.on_gpu else self.batches, []
        if quick:
            self.batches, self.prompts = self.batches[:2], self.prompts[:1]
        self.rounds = 3 if quick else 15
        self.ceilings, self.ceiling_records = measure(device, quick)

    def records(self) -> Iterator[Record]:
        yield from self.ceiling_records
        model = random_model(GLM_4_VOICE if self.on_gpu else SMALL, self.device)
        self.dtype = str(model.transformer.weights.embedding.dtype).removeprefix("torch.")
        if self.part != "compiled":
            yield from self.eager(model)
        if self.part == "compiled" or (self.part == "all" and self.on_gpu and not self.quick):
            yield from self.against_all(model, compiled=True)  # which takes minutes

    def eager(self, model: DecodeModel) -> Iterator[Record]:
        """Everything but the compiled peers, what has a goal first."""
        yield self.alone(model)
        if self.on_gpu:
            yield from self.dependent(model, 1)
        yield from self.against_all(model, compiled=False)
        for rows in self.batches[1:]:
            self.free()
            yield self.batched(model, rows)
        for num_tokens in self.prompts:
            self.free()
            yield self.prefill(model, num_tokens)
        if self.on_gpu and self.part == "all":
            yield from self.dependent(model, 8)

    def against_all(self, model: DecodeModel, compiled: bool) -> Iterator[Record]:
        """Batch 1 against each peer."""
        for name, make in self.peers(compiled).items():
            self.free()
            yield self.against(model, name, make)

    def alone(self, model: DecodeModel) -> Record:
        """Batch 1 against what a copy moves in its time (G1)."""
        loop = self.loop(model, 1)
        times = interleaved(
            {"ours": loop.step}, device=self.device, rounds=self.rounds, warmup=2, inner=INNER
        )["ours"]
        loop.finish()
        mbu = self.bytes(model, 1) / times.median / self.ceilings.copy_bw
        return self.record(model, 1, times, goal="G1", peer=None, peer_name="copy", ratio=mbu)

    def against(self, model: DecodeModel, name: str, make: Callable[..., Callable[[], Any]]) -> Record:
        """Batch 1 in turns with a peer."""
        loop = self.loop(model, 1)
        try:
            runs: dict[str, Callable[[], object]] = {
                "ours": loop.step,
                name: make(model.transformer, 1, self.context),
            }
            times = interleaved(runs, device=self.device, rounds=self.rounds, warmup=2, inner=INNER)
        except (
            Exception
        ) as error:  # a peer that does not run here is no fault of ours, and is told in its record
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return replace(
                self.alone(model),
                goal=OF_PEERS.get(name),
                peer_name=name,
                ratio=None,
                invalid=f"the peer failed: {reason}",
            )
        loop.finish()
        peer_mbu = self.bytes(model, 1) / times[name].median / self.ceilings.copy_bw
        peer = {"goal": OF_PEERS.get(name), "peer": times[name], "peer_name": name}
        return self.record(
            model, 1, times["ours"], invalid=doubt(name, peer_mbu if self.on_gpu else 1.0), **peer
        )

    def peers(self, compiled: bool) -> dict[str, Callable[..., Callable[[], Any]]]:
        """Makers of steps by name."""
        names = (
            ("torch.compile static cache", "transformers compile static cache")
            if compiled
            else (GRAPHED, "transformers eager")
        )
        makers = (static_decode.stepper, transformers_glm.stepper)
        return {name: partial(maker, compiled=compiled) for name, maker in zip(names, makers, strict=True)}

    def batched(self, model: DecodeModel, rows: int) -> Record:
        """A batch over the roof: bytes and FLOPs of products and of attention, each at its own ceiling."""
        loop = self.loop(model, rows)
        times = interleaved(
            {"ours": loop.step}, device=self.device, rounds=self.rounds, warmup=2, inner=INNER
        )["ours"]
        loop.finish()
        roof = self.roof_s(model, rows)
        goal = "G7" if rows == 128 else None
        return self.record(
            model, rows, times, goal=goal, peer=None, peer_name="roof", ratio=roof / times.median
        )

    def dependent(self, model: DecodeModel, rows: int) -> Iterator[Record]:
        """A step by programmatic dependent launch against one whose kernels begin when the one before has ended, in turns;
        alone, against what a copy moves in its time too (G1).
        """
        self.free()
        ours, peer = "decode step, dependent launches", "launches one after another"
        case: dict[str, Any] = {
            "shape": f"{rows} rows, {self.context} tokens",
            "unit": "ms",
            "peer_name": peer,
        }
        case |= {"device": device_name(self.device), "dtype": self.dtype}
        try:
            loops = {name: self.loop(model, rows, pdl=name == ours) for name in (peer, ours)}
            runs: dict[str, Callable[[], object]] = {name: loop.step for name, loop in loops.items()}
            times = interleaved(runs, device=self.device, rounds=self.rounds, warmup=2, inner=INNER)
            same = loops[ours].finish() == loops[peer].finish()
        except Exception as error:  # not every driver has it, and the rest stands without
            yield Record(
                ours,
                ours=None,
                invalid=f"it failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                **case,
            )
            return
        invalid = None if same else "the tokens are not the same"
        yield Record.of(ours, ours=times[ours], peer=times[peer], invalid=invalid, **case, **self.state())
        if rows == 1:
            mbu = self.bytes(model, 1) / times[ours].median / self.ceilings.copy_bw
            yield Record.of(
                ours,
                ours=times[ours],
                goal="G1",
                ratio=mbu,
                invalid=invalid,
                **(case | {"peer_name": "copy"}),
                **self.state(),
            )

    def roof_s(self, model: DecodeModel, rows: int) -> float:
        """T(B) = max(W / BW, 2 P B / F) + max(B ctx kv / BW, 4 B ctx H d L / F), with the ceilings of this run."""
        config, c = model.transformer.config, self.ceilings
        alone, products = step_bytes(config, self.dtype, 0, 0), step_flops(config, rows, 0)
        cache, scores = self.bytes(model, rows) - alone, step_flops(config, rows, self.context) - products
        return c.floor_s(alone, products) + c.floor_s(cache, scores)

    def prefill(self, model: DecodeModel, num_tokens: int) -> Record:
        """One prompt, against the time of its FLOPs."""
        times = Times(tuple(time_prefill(model, num_tokens, self.rounds, Tracer())), 1)
        config = model.transformer.config
        head = 2 * config.vocab_size * config.hidden_size
        flops = num_tokens * (step_flops(config, 1, 0) - head) + head
        attention = 2 * config.num_layers * config.num_heads * config.head_dim * num_tokens**2
        floor = self.ceilings.floor_s(step_bytes(config, self.dtype, 1, num_tokens), flops + attention)
        return Record.of(
            "prefill", f"{num_tokens} tokens", times, unit="ms", device=device_name(self.device), dtype=self.dtype,
            peer_name="floor", ratio=floor / times.median, flops=flops + attention, details=self.ceilings.details, **self.state(),
        )  # fmt: skip

    def loop(self, model: DecodeModel, rows: int, **options: Any) -> Loop:
        return make_loop(model, rows, self.context, (self.rounds + 4) * INNER, Tracer(), **options)

    def bytes(self, model: DecodeModel, rows: int) -> int:
        return step_bytes(model.transformer.config, self.dtype, rows, self.context)

    def record(self, model: DecodeModel, rows: int, times: Times, **more: Any) -> Record:
        shape = f"{rows} rows, {self.context} tokens"
        flops = step_flops(model.transformer.config, rows, self.context)
        return Record.of(
            "decode step", shape, times, unit="ms", device=device_name(self.device), dtype=self.dtype,
            bytes=self.bytes(model, rows), flops=flops, details=self.ceilings.details, **self.state(), **more,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return gpu_state() if self.on_gpu else {}

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--part",
        default="all",
        choices=("all", "first", "compiled"),
        help="first: what has goals, without prompts and compiled peers; compiled: those peers alone",
    )
    # Before the help of this module is printed: a CPU's bench has its own.
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--device", default=arguments.get_default("device"))
    chosen.add_argument("--part", default="all")
    where, _ = chosen.parse_known_args(argv)
    if where.device == "cpu" and where.part == "all":
        decode_cpu.main(argv)
        return
    options, others = arguments.parse_known_args(argv)
    if others:
        arguments.error(f"unrecognized arguments: {' '.join(others)}")
    made = Decode(options.device, options.quick, options.part).records()
    report(made, options.json, rehearsal=options.device == "cpu")


if __name__ == "__main__":
    main()
