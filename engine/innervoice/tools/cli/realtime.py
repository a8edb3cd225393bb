"""The command innervoice bench realtime: callers of any server of OpenAI's Realtime protocol."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from innervoice.api.event_log import write_events
from innervoice.files import parse_json, read_text
from innervoice.tools.cli.display import printable
from innervoice.tools.cli.outputs import all_reserved, create_folder
from innervoice.tools.cli.serve import KEY_VARIABLE, read_keys

NOTE_EVERY_S = 5.0  # between lines of progress
INVALID = 3  # the exit code of a run whose figures say nothing of the server

if TYPE_CHECKING:
    from innervoice.tools.realtime_bench import CallSettings, CrowdLog, RealtimeFigures, Recording
    from innervoice.tools.realtime_bench.turn import CallTurn


def realtime(
    url: Annotated[
        str, typer.Option(help="The server, such as ws://127.0.0.1:8000/v1/realtime; wss, http, https too.")
    ],
    callers: Annotated[int, typer.Option(help="Callers at the same time.")] = 1,
    audio: Annotated[
        Path | None, typer.Option(help="A folder of recorded questions; default: the two of the package.")
    ] = None,
    turns: Annotated[
        Literal["server", "manual"],
        typer.Option(help="Who ends a question: the server, by turn detection, or the caller, by a commit."),
    ] = "server",
    num_turns: Annotated[
        int | None, typer.Option(help="Turns of a call; default: 3, or with --seconds as many as fit.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="No turn begins later; callers call again until then.")
    ] = None,
    think_s: Annotated[
        float, typer.Option(help="Mean pause between a reply's last sound and the next question.")
    ] = 0.5,
    barge_in: Annotated[
        float, typer.Option(help="Probability that the next question interrupts a reply.")
    ] = 0.0,
    arrivals: Annotated[
        float, typer.Option(help="Calls that begin a second, at random times; inf: all at once.")
    ] = math.inf,
    num_warmups: Annotated[int, typer.Option(help="Calls of one turn before the others, not measured.")] = 1,
    seed: Annotated[int, typer.Option(help="Of arrivals, pauses and interruptions.")] = 0,
    dialect: Annotated[
        Literal["auto", "ga", "beta"],
        typer.Option(help="The protocol's dialect; auto: by the session that the server greets with."),
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Name of the model, for the URL's query.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help=f"A key, or @FILE with one; default: {KEY_VARIABLE} of the environment, or none."),
    ] = None,
    session: Annotated[
        Path | None, typer.Option(help="A JSON object in a file: more fields of session.update.")
    ] = None,
    silence_ms: Annotated[
        int | None, typer.Option(help="Silence that ends a turn; default: the server's own.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for anything the server must do.")] = 30.0,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust besides the system's, for wss.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Every turn with its arrivals, one JSON object a line.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="The record, as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="A folder for report.html, with plots; it is created.")
    ] = None,
) -> None:
    """Speak recordings in real time to any server of OpenAI's Realtime protocol, hear
    the replies, interrupt some, and report the figures of bench stream.
    """
    try:
        from innervoice.tools.realtime_bench import CallSettings, bundled_recordings, read_recordings
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed, which calls need: pip install 'innervoice[server]'"
        ) from error

    settings = CallSettings(
        url=url,
        callers=callers,
        dialect=dialect,
        turns=turns,
        num_turns=num_turns,
        seconds=seconds,
        think_s=think_s,
        barge_in=barge_in,
        arrivals=arrivals,
        num_warmups=num_warmups,
        seed=seed,
        timeout_s=timeout_s,
        silence_ms=silence_ms,
        model=model,
        api_key=_key(api_key),
        session={} if session is None else _session(session),
        ca_file=ca_file,
    )
    recordings = bundled_recordings() if audio is None else read_recordings(audio)
    if report is not None:
        create_folder(report)
    page = None if report is None else report / "report.html"
    with all_reserved({"out": out, "json": json_file, "report": page}) as parts:
        log, figures, ended_by = _run(settings, recordings)
        _write(log, figures, settings, recordings, parts)
    Console().print(shown(figures, log, settings))
    _end(log, figures, ended_by)


def shown(figures: RealtimeFigures, log: CrowdLog, settings: CallSettings) -> RenderableType:
    """The figures for a terminal: a line for the run, a table of distributions, errors by type."""
    from innervoice.tools.realtime_bench.figures import columns, populations
    from innervoice.tools.realtime_bench.labels import ROWS, cells, counted

    replies = figures.replies
    num = f"{counted(replies.num_requests, 'turn')} in {counted(figures.num_calls, 'call')}, {figures.wall_s:.1f} s"
    head = f"{settings.url.partition('?')[0]}\n{settings.shape}\n{num}"
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("n", "p50", "p90", "p99", "most"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    found = columns(figures)
    for name, label in ROWS.items():
        values = found[name]
        if values.n:
            table.add_row(label, *cells(name, values))
    ending = [populations(figures), *_summary(figures)]
    if figures.invalid is not None:
        ending += ["", f"INVALID: {figures.invalid}"]
    middle: list[RenderableType] = [table, Text()] if table.row_count else []
    return Group(Text(f"{head}\n"), *middle, Text("\n".join(ending)))


def _summary(figures: RealtimeFigures) -> Iterator[str]:
    from innervoice.tools.realtime_bench.labels import percent_words

    replies, cuts = figures.replies, figures.interruptions
    shares = [f"{name} {percent_words(getattr(replies, name))}" for name in ("c50", "c100", "c200")]
    yield f"continuity: {', '.join(shares)}; chunks in time {percent_words(replies.streaming_viability)}"
    yield (
        f"underruns: {replies.num_stalls} in {replies.num_stalled_requests} of {replies.num_requests} replies; "
        f"calls without one: {percent_words(figures.underrun_free)}"
    )
    if cuts.num:
        yield f"barge-ins: {cuts.num}, of which the server did not notice {cuts.num_ignored}"
    if figures.stalled_s > 1e-3:
        yield f"the servers took no frames for {figures.stalled_s:.2f} s in all"
    for kind, num in figures.errors.items():
        yield f"failed: {num} x {printable(kind)}"
    for code, num in figures.error_events.items():
        yield f"error events: {num} x {printable(code)}"


def _key(given: str | None) -> str | None:
    keys = read_keys(None if given is None else [given])
    return keys[0] if keys else None


def _session(path: Path) -> dict[str, Any]:
    remedy = "give a JSON object with fields of a session"
    made = parse_json(read_text(path, remedy, "session"), f"{path}: this", remedy)
    if not isinstance(made, dict):
        raise ValueError(f"{path} holds a {type(made).__name__}: {remedy}")
    return made


def _run(
    settings: CallSettings, recordings: list[Recording]
) -> tuple[CrowdLog, RealtimeFigures, signal.Signals | None]:
    """Hold all calls; Ctrl-C or SIGTERM, which is the last result, ends them, and what there is counts."""
    from innervoice.tools.realtime_bench import figures_of, hold_calls

    caught: list[signal.Signals] = []

    async def work() -> CrowdLog:
        stop = asyncio.Event()

        def end(number: signal.Signals) -> None:
            caught.append(number)
            stop.set()

        # Only the main thread of a process gets signals.
        with suppress(ValueError, RuntimeError):
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, end, number)
        with _progress(settings) as counts:
            ticker = asyncio.create_task(counts.tick())
            try:
                return await hold_calls(settings, recordings, stop=stop, on_turn=counts.turn)
            finally:
                ticker.cancel()

    log = asyncio.run(work())
    return log, figures_of(log), caught[0] if caught else None


class _Counts:
    """Counts turns on a line of a terminal; elsewhere prints a line of its own every few seconds."""

    def __init__(self, num_callers: int, bar: Progress) -> None:
        from innervoice.tools.realtime_bench.labels import counted

        self._callers = counted(num_callers, "caller")
        self._bar = bar
        self._task = bar.add_task(self._callers)
        self._num_turns = 0
        self._num_failed = 0

    def turn(self, turn: CallTurn) -> None:
        """Count a turn that is over."""
        self._num_turns += 1
        self._num_failed += turn.error is not None
        self._bar.update(self._task, description=self._words)

    async def tick(self) -> None:
        """Print lines where there is no terminal, until it is cancelled."""
        begun_s = time.monotonic()
        while not self._bar.console.is_terminal:
            await asyncio.sleep(NOTE_EVERY_S)
            print(f"{time.monotonic() - begun_s:.0f} s: {self._words}", file=sys.stderr, flush=True)

    @property
    def _words(self) -> str:
        from innervoice.tools.realtime_bench.labels import counted

        return f"{self._callers}, {counted(self._num_turns, 'turn')}, {self._num_failed} failed"


@contextmanager
def _progress(settings: CallSettings) -> Iterator[_Counts]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Counts(settings.callers, bar)


def _write(
    log: CrowdLog,
    figures: RealtimeFigures,
    settings: CallSettings,
    recordings: list[Recording],
    parts: dict[str, Path],
) -> None:
    from innervoice.tools.realtime_bench import records_of
    from innervoice.tools.realtime_bench.report import written_report

    if "out" in parts:
        write_events(parts["out"], [turn.to_dict() for turn in log.turns])
    if "json" in parts:
        lines = map(json.dumps, records_of(figures, log, settings))
        parts["json"].write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    if "report" in parts:
        parts["report"].write_text(written_report(figures, log, settings, recordings), encoding="utf-8")


def _end(log: CrowdLog, figures: RealtimeFigures, ended_by: signal.Signals | None) -> None:
    """Fail where no reply was heard; exit with 130 after Ctrl-C, 143 after SIGTERM and 3 where figures are invalid."""
    if log.is_cut:
        raise typer.Exit(128 + (ended_by or signal.SIGINT))
    if not figures.replies.audio_ttfp_ms.n:
        detail = next((one for call in log.calls for one in call.details), next(iter(figures.errors), ""))
        raise ValueError(f"no reply was heard from the server: {printable(detail) or 'no call was made'}")
    if figures.invalid is not None:
        raise typer.Exit(INVALID)
