"""Decode on a CPU that is not ours alone: a busy process on one core, one core for all threads, more threads than cores.

Every case in turns with one thread on a quiet machine, int8 weights of SmolLM2-135M's shape: the ratio is what is left of that
throughput. `python -m bench.crowded_cpu`; Linux only, which sets the cores that a process may use.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import torch
from bench.decode_cpu import FORMATS, SMOLLM2, Ours, Tensors
from bench.record import Record, add_append, cpu_facts, device_name, interleaved, parser, report

from innervoice.model.families.llama import load_weights
from innervoice.model.pages import Activations
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import Transformer

STEPS = 8


class Busy:
    """A process that does nothing but run, on one core; it stands still but within `beside`."""

    def __init__(self, core: int) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        os.sched_setaffinity(self._process.pid, {core})
        self._process.send_signal(signal.SIGSTOP)

    def beside(self, run: Callable[[], object]) -> Callable[[], None]:
        """`run` while the process runs."""

        def both() -> None:
            self._process.send_signal(signal.SIGCONT)
            run()
            self._process.send_signal(signal.SIGSTOP)

        return both

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def on_cores(model: Transformer, threads: int, cores: set[int]) -> Callable[[], None]:
    """A few steps by a team that is made while the process may use these cores only, and runs while it may."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    ours = Ours(model, threads)
    ours.prefill()
    os.sched_setaffinity(0, usable)

    def run() -> None:
        os.sched_setaffinity(0, cores)
        ours.row.truncate(len(ours.prompt))
        ours.row.table.grow(len(ours.prompt) + STEPS)
        ours.decode(STEPS)
        os.sched_setaffinity(0, usable)

    return run


def records(quick: bool, activations: Activations) -> Iterator[Record]:
    config = replace(SMOLLM2, num_layers=2) if quick else SMOLLM2
    to = FORMATS["int8"]
    assert to is not None
    source = QuantizingSource(Tensors(config, None), replace(to, head=True))
    weights = load_weights(config, source, torch.bfloat16).for_inputs(activations, in_place=True)
    model = Transformer(config, weights)
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    busy = Busy(max(cores))
    many = 2 * len(cores)
    alone = on_cores(model, 1, cores)
    cases = {
        "1 thread, a busy process": (1, busy.beside(alone)),
        "2 threads, a busy process on one core": (2, busy.beside(on_cores(model, 2, cores))),
        "2 threads, one core": (2, on_cores(model, 2, {min(cores)})),
        f"{many} threads, {len(cores)} cores": (many, on_cores(model, many, cores)),
        f"{many} threads, a busy process": (many, busy.beside(on_cores(model, many, cores))),
    }
    try:
        runs = {"alone": alone} | {shape: run for shape, (_, run) in cases.items()}
        times = interleaved(runs, rounds=2 if quick else 15, warmup=1)
    finally:
        busy.close()
    for shape, (threads, _) in cases.items():
        yield Record.of(
            "decode on a crowded CPU", f"{shape}, {STEPS} tokens", times[shape], unit="ms", device=device_name("cpu"),
            dtype=f"int8, inputs {activations}", peer=times["alone"], peer_name="1 thread, quiet", threads=threads,
            bytes=model.weights.num_bytes, details={"cpu": cpu_facts()},
        )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--activations", default="int8", choices=get_args(Activations), help="how inputs are rounded"
    )
    add_append(arguments)
    options = arguments.parse_args(argv)
    if options.device != "cpu" or not hasattr(os, "sched_setaffinity"):
        raise SystemExit("bench.crowded_cpu measures a CPU under Linux: --device cpu")
    report(records(options.quick, options.activations), options.json, append=options.append)


if __name__ == "__main__":
    main()
