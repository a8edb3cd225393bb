"""innervoice bench decode: the decode loop, timed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Annotated, Any

import typer

from innervoice.api.options import EngineOptions
from innervoice.fields import Limits, read_fields
from innervoice.telemetry.trace import Tracer
from innervoice.tools.cli.options import with_engine_options
from innervoice.tools.cli.outputs import all_reserved

if TYPE_CHECKING:
    from innervoice.tools.decode_bench import DecodeModel


@dataclass(frozen=True)
class _Sizes:
    """What is timed, in rows, tokens and steps. Raises ValueError."""

    batch: Annotated[int, Limits(1, 2**16)]
    context: Annotated[int, Limits(1, 2**24)]
    steps: Annotated[int, Limits(1, 10**7)]
    warmup: Annotated[int, Limits(0, 10**7)]
    prefill: Annotated[int, Limits(0, 2**24)]

    def __post_init__(self) -> None:
        read_fields(self)


@with_engine_options("load_format", "device", "dtype")
def decode(
    model: Annotated[
        str, typer.Option(help="Checkpoint directory; with --load-format dummy, config.json is enough.")
    ],
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens that each row has cached.")] = 2048,
    steps: Annotated[int, typer.Option(help="Steps that are timed.")] = 64,
    warmup: Annotated[int, typer.Option(help="Steps before them.")] = 4,
    prefill: Annotated[int, typer.Option(help="Also time a prompt of so many tokens; 0: none.")] = 0,
    graph: Annotated[
        bool, typer.Option(help="A CUDA graph a step; without it every stage has its own NVTX range.")
    ] = True,
    invariant: Annotated[bool, typer.Option(help="The same tokens in every batch, without cuBLAS.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Chrome trace JSON of the timed steps.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="The figures as JSON.")] = None,
    *,
    chosen: dict[str, Any],
) -> None:
    """Time the decode loop on random keys and values: no prompt, no codec."""
    from innervoice.tools.decode_bench import DecodeModel, DeviceLoop, make_loop, time_prefill, time_steps

    _Sizes(batch, context, steps, warmup, prefill)
    tracer = Tracer()
    with all_reserved({"trace": trace, "json": json_file}) as parts:
        loaded = DecodeModel.load(model, EngineOptions(**chosen))
        loop = make_loop(loaded, batch, context, steps + warmup, tracer, graphs=graph, invariant=invariant)
        if trace is not None:
            tracer.start()
        seconds = time_steps(loop, loaded.device, steps, warmup, tracer)
        if trace is not None:
            tracer.stop()
            tracer.save(parts["trace"])
        found = _figures(loaded, seconds, batch, context) | {"graph": graph, "warmup": warmup}
        if isinstance(loop, DeviceLoop):
            stats = loop.device_step.stats()
            found |= {
                "ready_s": stats.ready_s,
                "jit_after_warmup": stats.jit_after_warmup,
                "graphs": stats.graphs,
            }
        if prefill:
            found |= {
                "prefill_tokens": prefill,
                "prefill_ms": 1e3 * median(time_prefill(loaded, prefill, 5, tracer)),
            }
        for name, value in found.items():
            print(f"{name:18} {value:.4g}" if isinstance(value, float) else f"{name:18} {value}")
        if json_file is not None:
            parts["json"].write_text(json.dumps(found) + "\n", encoding="utf-8")


def _figures(loaded: DecodeModel, seconds: list[float], batch: int, context: int) -> dict[str, Any]:
    from innervoice.tools.decode_bench import step_bytes

    weights = loaded.transformer.weights
    dtype = str(weights.dtype).removeprefix("torch.")
    step_s = median(seconds)
    deciles = quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [step_s] * 9
    num_bytes = step_bytes(loaded.transformer.config, dtype, batch, context)
    return {
        "device": str(loaded.device), "dtype": dtype, "batch": batch, "context": context, "steps": len(seconds),
        "step_ms": 1e3 * step_s, "step_ms_p10": 1e3 * deciles[0], "step_ms_p90": 1e3 * deciles[8],
        "decode_tok_s": batch / step_s, "bytes": num_bytes, "bytes_per_s": num_bytes / step_s,
    }  # fmt: skip
