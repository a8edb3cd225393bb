"""The commands innervoice bench stream and metrics: speed, and gaps in the sound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import innervoice
from innervoice.api.event_log import write_events
from innervoice.files import parse_json, read_text
from innervoice.telemetry.metrics import Distribution, RequestTimings, RunMetrics, summarize
from innervoice.tools.cli.inputs import read_schedule
from innervoice.tools.cli.options import JsonOption, with_engine_options
from innervoice.tools.cli.outputs import create_folder, reserved
from innervoice.tools.packaged import SCHEDULE, logged, packaged_load
from innervoice.types import Sampling

if TYPE_CHECKING:
    from innervoice.tools.loadgen import LoadResult


@with_engine_options("device", "dtype", "streaming")
def stream(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory or hub id; default: the packaged innervoice-mini."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Questions, one JSON object a line; default: the packaged recordings.")
    ] = None,
    request_rate: Annotated[
        float, typer.Option(help="Requests a second, at random times; inf: all at once.")
    ] = math.inf,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests at a time.")] = None,
    num_prompts: Annotated[int, typer.Option(help="Requests to measure.")] = 32,
    num_warmups: Annotated[int, typer.Option(help="Requests before them.")] = 2,
    schedule: Annotated[
        str | None, typer.Option(help="A preset or a .json file, where the manifest says none.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of a reply, where the manifest says none.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of the arrivals, and of replies that have none.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Every request with its arrivals, one JSON object a line.")
    ] = Path("requests.jsonl"),
    events: Annotated[
        Path | None, typer.Option(help="A folder for every reply's event log, for replay.")
    ] = None,
    as_json: JsonOption = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Ask at random times, hear every reply in real time, and report the figures
    by which engines are compared.
    """
    from innervoice.tools.loadgen import Load, bundled_questions, read_manifest, run_load

    load = Load(num_prompts, request_rate, max_concurrency, num_warmups, seed)
    questions = bundled_questions() if manifest is None else read_manifest(manifest)
    request: dict[str, Any] = {"sampling": Sampling(max_new_tokens=max_new_tokens)}
    if schedule is not None or model is None:
        request["schedule"] = read_schedule(schedule or SCHEDULE)
    options = packaged_load(chosen) if model is None else {"model": model} | chosen
    if events is not None:
        create_folder(events)
    with reserved(out) as part:
        with innervoice.Engine.from_pretrained(**options) as engine:
            run = run_load(engine, questions, load, request)
        write_events(part, [one.to_dict() for one in run.calls])
    if events is not None:
        _write_event_logs(events, run, logged(options))
    _print(run.metrics, as_json, {"num_starved": run.num_starved, "lag_p99_ms": run.lag_p99_ms})


def metrics(
    log: Annotated[
        Path,
        typer.Argument(metavar="REQUESTS.jsonl", help="What bench stream wrote, or another server's log."),
    ],
    as_json: JsonOption = False,
) -> None:
    """The same figures from a log of arrivals: {"submitted_s", "rate", "audio": [[t, samples]],
    "tokens": [[t, kind]]} a line.
    """
    remedy = "name a file that innervoice bench stream wrote"
    lines = enumerate(read_text(log, remedy, "log").splitlines(), 1)
    values = [parse_json(line, f"{log}, line {number}", remedy) for number, line in lines if line.strip()]
    _print(summarize([RequestTimings.from_dict(value) for value in values]), as_json, {})


def table(figures: RunMetrics, more: dict[str, float | None]) -> Iterator[str]:
    """One line a figure; a first-audio figure never stands without the length of its chunk."""
    for name, value in ({f.name: getattr(figures, f.name) for f in fields(figures)} | more).items():
        if isinstance(value, Distribution):
            yield _row(name, value)
        elif isinstance(value, dict):
            parts = [(f"{kind}.{part}", one) for kind, own in value.items() for part, one in own.items()]
            yield from (_row(part, one) for part, one in parts if one.n)
        else:
            yield f"{name:28} {_number(value)}"


def _row(name: str, values: Distribution) -> str:
    shares = {
        "median": values.median,
        "p10": values.p10,
        "p90": values.p90,
        "p99": values.p99,
        "most": values.most,
    }
    return f"{name:28} n {values.n:<6} " + "  ".join(
        f"{share} {_number(value):9}" for share, value in shares.items()
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print(figures: RunMetrics, as_json: bool, more: dict[str, float | None]) -> None:
    if as_json:
        print(json.dumps(figures.to_dict() | more))
    else:
        print("\n".join(line.rstrip() for line in table(figures, more)))


def _write_event_logs(folder: Path, run: LoadResult, options: dict[str, Any]) -> None:
    for number, one in enumerate(run.calls):
        lines = [line | {"engine": options} if line["kind"] == "request" else line for line in one.lines]
        write_events(folder / f"{number:05}.jsonl", lines)
