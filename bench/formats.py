"""Decode with int8, int4 and fp8 weights beside the same engine in bfloat16, in turns (goals G4a, G4b), and bitsandbytes' NF4.

On a GPU GLM-4-Voice's shape at 9B with random weights and 2,048 tokens of context, batch 1 to 128; on a CPU a small model, to be
tested. The head is quantised too. NF4 is what the original's int4 mode uses: transformers' GLM with bitsandbytes' 4-bit layers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench.ceilings import measure
from bench.peers import nf4
from bench.record import Record, Times, device_name, gpu_state, interleaved, parser, report
from bench.shapes import GLM_4_VOICE, SMALL, random_model

from innervoice.checkpoint.quantization import Quantization
from innervoice.model.quant import num_bytes
from innervoice.telemetry.trace import Tracer
from innervoice.tools.decode_bench import DecodeModel, make_loop

INNER = 8  # steps between two marks
FORMATS = {
    Quantization("fp8"): "G4a", Quantization("int4"): "G4b", Quantization("int4", 64): None, Quantization("int4", 128): "G4b",
    Quantization("int8"): None,
}  # fmt: skip


def step_bytes(model: DecodeModel, rows: int, context: int) -> int:
    """Bytes that a decode step must move: the weights of the products as they are kept, keys and values."""
    t = model.transformer
    parts = [part for w in t.weights.layers for part in (w.qkv, w.attention_out, w.gate_up, w.down)]
    weights = sum(map(num_bytes, [*parts, t.weights.output]))
    return weights + rows * (context + 1) * t.config.kv_bytes_per_token(dtype_name(model))


def dtype_name(model: DecodeModel) -> str:
    """Of what is not quantised."""
    return str(model.transformer.weights.dtype).removeprefix("torch.")


class Formats:
    """The measurements on one device."""

    def __init__(self, device: str, quick: bool, first: bool = False) -> None:
        self.device, self.quick, self.on_gpu = device, quick, device == "cuda"
        self.shape = GLM_4_VOICE if self.on_gpu else SMALL
        self.context = 2048 if self.on_gpu else 128
        self.batches = [1, 8, 16, 32, 64, 128] if self.on_gpu else [1, 4]
        self.rounds = 3 if quick else 10
        self.formats = FORMATS
        if first:
            self.formats = {
                to: goal for to, goal in FORMATS.items() if to in (Quantization("fp8"), Quantization("int4"))
            }
        if quick or first:
            self.batches = self.batches[:1]

    def records(self) -> Iterator[Record]:
        self.ceilings, ceiling_records = measure(self.device, self.quick)
        yield from ceiling_records
        base = random_model(self.shape, self.device)
        for to, goal in list(self.formats.items())[: 2 if self.quick else None]:
            model = random_model(self.shape, self.device, to)
            for rows in self.batches:
                yield self.compared(base, model, to, rows, goal if rows == 1 else None)
            del model
            self.free()
        if len(self.formats) == len(FORMATS):
            yield from self.against_nf4(base)

    def compared(
        self, base: DecodeModel, model: DecodeModel, to: Quantization, rows: int, goal: str | None
    ) -> Record:
        """A format and bfloat16 in turns."""
        loops = {"ours": self.loop(model, rows), "peer": self.loop(base, rows)}
        times = self.timed({name: loop.step for name, loop in loops.items()})
        for loop in loops.values():
            loop.finish()
        peer_name = f"own {dtype_name(base)}"
        return self.record(
            model, rows, times["ours"], str(to), goal=goal, peer=times["peer"], peer_name=peer_name
        )

    def against_nf4(self, base: DecodeModel) -> Iterator[Record]:
        """Our int4 and bitsandbytes' NF4 at batch 1, in turns."""
        to = Quantization("int4", 64)  # as many numbers share a scale in NF4
        model = random_model(self.shape, self.device, to)
        loop = self.loop(model, 1)
        try:
            peer = nf4.stepper(base.transformer, 1, self.context)
        except (
            Exception
        ) as error:  # a peer that does not run here is no fault of ours, and is told in its record
            reason = f"the peer failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            times = self.timed({"ours": loop.step})
            yield self.record(
                model, 1, times["ours"], str(to), peer=None, peer_name="bitsandbytes NF4", invalid=reason
            )
        else:
            times = self.timed({"ours": loop.step, "peer": peer})
            yield self.record(
                model, 1, times["ours"], str(to), peer=times["peer"], peer_name="bitsandbytes NF4"
            )
        loop.finish()

    def timed(self, runs: dict[str, Callable[[], object]]) -> dict[str, Times]:
        return interleaved(runs, device=self.device, rounds=self.rounds, warmup=2, inner=INNER)

    def loop(self, model: DecodeModel, rows: int) -> Any:
        return make_loop(model, rows, self.context, (self.rounds + 4) * INNER, Tracer())

    def record(self, model: DecodeModel, rows: int, times: Times, dtype: str, **more: Any) -> Record:
        moved = step_bytes(model, rows, self.context)
        details = {**self.ceilings.details, "share_of_copy": moved / times.median / self.ceilings.copy_bw}
        return Record.of(
            "decode step", f"{rows} rows, {self.context} tokens", times, unit="ms", device=device_name(self.device), dtype=dtype,
            bytes=moved, details=details, **(gpu_state() if self.on_gpu else {}), **more,
        )  # fmt: skip

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--first", action="store_true", help="fp8 and int4 at batch 1 alone")
    options = arguments.parse_args(argv)
    made = Formats(options.device, options.quick, options.first).records()
    report(made, options.json, rehearsal=options.device == "cpu")


if __name__ == "__main__":
    main()
