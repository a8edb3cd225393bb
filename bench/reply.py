"""One spoken reply from end to end: first audio over its floor (G10), real-time factor, where the time goes by stage.

On a GPU GLM-4-Voice's shapes with random weights, a prompt of 500 tokens and the interleaved schedule (13 of transcript, 26 of
speech, the first sound after 10 of these); on a CPU the tiny checkpoint, to be tested.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from bench.ceilings import Ceilings, measure
from bench.record import Record, Times, device_name, gpu_state, parser, report
from bench.shapes import write_shipped_configs

from innervoice import Engine, Ids, Reply, Sampling, Schedule
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.tools.decode_bench import step_bytes, step_flops

TINY = Path(str(resources.files("innervoice") / "assets" / "tiny"))
PROMPT, SPOKEN_BEFORE, FIRST_CHUNK = 500, 13, 10


def floor_s(config: ModelConfig, dtype: str, ceilings: Ceilings) -> float:
    """prefill(500) + (13 + 10 - 1) T(1), the flow and the vocoder left out: what neither memory nor arithmetic lets one beat."""
    prefill = ceilings.floor_s(step_bytes(config, dtype, 1, PROMPT), PROMPT * step_flops(config, 1, 0))
    step = ceilings.floor_s(step_bytes(config, dtype, 1, PROMPT), step_flops(config, 1, PROMPT))
    return prefill + (SPOKEN_BEFORE + FIRST_CHUNK - 1) * step


def stages(trace: Path) -> dict[str, dict[str, float]]:
    """Spans of a trace by name: how many, and milliseconds in all; on a GPU what a call took the host unless it waited."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
        if event["ph"] == "X":
            found[event["name"]].append(event["dur"] / 1e3)
    return {name: {"count": len(times), "ms": sum(times)} for name, times in sorted(found.items())}


class ReplyTable:
    """The measurements on one device."""

    def __init__(self, device: str, quick: bool, rounds: int) -> None:
        self.device, self.on_gpu, self.rounds = device, device == "cuda", 2 if quick else rounds
        self.dtype = "bfloat16" if self.on_gpu else "float32"
        self.tokens = 40 if quick else 300 if self.on_gpu else 120
        self.ceilings, self.ceiling_records = measure(device, quick)

    def records(self) -> Iterator[Record]:
        yield from self.ceiling_records
        with tempfile.TemporaryDirectory() as folder:
            model, options = TINY, dict[str, Any]()
            if self.on_gpu:
                model, options = Path(folder) / "9b", {"load_format": "dummy"}
                model.mkdir()
                write_shipped_configs(model, TINY)
            with Engine.from_pretrained(
                model,
                device=self.device,
                dtype=self.dtype,
                max_sessions=2,
                max_model_len=1024,
                warmup=True,
                **options,
            ) as engine:
                yield from self.measured(engine, Path(folder))

    def measured(self, engine: Engine, folder: Path) -> Iterator[Record]:
        config = engine.parts.core.runner.model.config
        ids = [1 + 7 * i % (config.vocab_size // 4) for i in range(PROMPT)]
        schedule = Schedule.preset("interleaved")
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self.tokens, ignore_eos=True)

        def ask(seed: int) -> Reply:
            prompt = Ids(
                [2 + seed, *ids[1:]]
            )  # another first id each time: no prompt is found again among cached pages
            return engine.stream(
                prompt, schedule=schedule, sampling=replace(sampling, seed=seed), realtime=False
            ).reply()

        ask(0)
        replies = [ask(1 + i) for i in range(self.rounds)]
        with engine.trace(folder / "trace.json"):
            ask(1 + self.rounds)
        usages = [reply.usage for reply in replies]
        first = Times(tuple((usage.audio_ttfp_ms or 0.0) / 1e3 for usage in usages), 1)
        floor = floor_s(config, self.dtype, self.ceilings)
        common: dict[str, Any] = {
            "device": device_name(self.device), "dtype": self.dtype, **(gpu_state() if self.on_gpu else {}),
            "details": {
                **self.ceilings.details, "floor_ms": 1e3 * floor, "stages": stages(folder / "trace.json"),
                "first_chunk_s": usages[0].first_chunk_s, "speech_tokens": usages[0].speech_tokens,
            },
        }  # fmt: skip
        shape = f"prompt of {PROMPT}, interleaved, first chunk of {FIRST_CHUNK}"
        ratio = first.median / floor
        more = {"goal": "G10", "peer_name": "floor", "ratio": ratio}
        yield Record.of("first audio", shape, first, unit="ms", **more, **common)
        factors = [usage.audio_rtf or 0.0 for usage in usages]
        yield Record(
            name="spoken reply", shape=f"{shape}, {self.tokens} tokens", unit="real-time factor", ours=median(factors),
            n=len(factors), median=median(factors), warmup=1, **common,
        )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=10, help="replies that are timed")
    options = arguments.parse_args(argv)
    made = ReplyTable(options.device, options.quick, options.rounds).records()
    report(made, options.json, rehearsal=options.device == "cpu")


if __name__ == "__main__":
    main()
