"""The command innervoice evaluate: the empathy of one reply, or of a file of pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from innervoice.tools.cli.answers import say
from innervoice.tools.cli.inputs import typed
from innervoice.tools.cli.options import JsonOption, ModelOption, with_engine_options
from innervoice.tools.cli.progress import show_items
from innervoice.tools.manifest.items import BrokenLine
from innervoice.tools.manifest.pairs import PairItem, read_pairs
from innervoice.tools.manifest.results import ResultLines
from innervoice.types import Prompt, Text

if TYPE_CHECKING:
    from innervoice.tools.raters import Rater


@with_engine_options(
    "revision",
    "local_files_only",
    "device",
    "dtype",
    "quantization",
    "backend",
    "kv_dtype",
    "activations",
    "max_model_len",
)
def evaluate_command(
    model: ModelOption,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION.wav", help="The recorded question.")
    ] = None,
    reply: Annotated[str | None, typer.Argument(metavar="REPLY.wav", help="The recorded reply.")] = None,
    question_text: Annotated[
        str | None, typer.Option(help="The question's words, beside its recording or in its place.")
    ] = None,
    reply_text: Annotated[
        str | None, typer.Option(help="The reply's words, beside its recording or in its place.")
    ] = None,
    zero_shot: Annotated[
        bool,
        typer.Option("--zero-shot", help="Judge with any chat model by the digits 1 to 5; not EmpathyEval."),
    ] = False,
    describe: Annotated[
        bool, typer.Option("--describe/--no-describe", help="Describe the empathy in words as well.")
    ] = True,
    manifest: Annotated[
        Path | None, typer.Option(help="Pairs in place of one: a JSON object a line.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The scores of a manifest; a run that was stopped goes on.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Pairs of a manifest at a time. Default: as many as fit.")
    ] = None,
    as_json: JsonOption = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Rate the empathy of a spoken or written reply to a question, or of every pair of a file."""
    from innervoice.tools.raters import Rater

    load = {"model": model} | chosen
    has_pair = any(one is not None for one in (question, reply, question_text, reply_text))
    if manifest is None:
        if out is not None or concurrency is not None:
            raise ValueError("--out and --concurrency are for a file of pairs: give --manifest too")
        pair = _side(question, question_text, "question"), _side(reply, reply_text, "reply")
        with Rater.load(load, zero_shot=zero_shot, describes=describe) as rater:
            _rate_one(rater, pair, as_json=as_json)
        return
    if out is None:
        raise ValueError("the scores of a manifest need a file: give --out")
    if has_pair:
        raise ValueError("a manifest has its own questions and replies: give --manifest and --out alone")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {out}: there is no directory {out.absolute().parent}, so create it or name another"
        )
    found = list(read_pairs(manifest))
    settings = {
        "engine": {name: str(value) for name, value in load.items()}, "zero_shot": zero_shot, "describe": describe,
    }  # fmt: skip
    lines = ResultLines(out, settings, out.with_name(out.name + ".run.json"))
    _rate_manifest(load, found, lines, concurrency, zero_shot=zero_shot, describe=describe, as_json=as_json)


def _side(recording: str | None, text: str | None, name: str) -> list[Prompt]:
    made: list[Prompt] = [] if recording is None else [Path(recording)]
    if text is not None:
        made.append(Text(typed(text)))
    if not made:
        raise ValueError(f"no {name}: give a recording or --{name}-text")
    return made


def _rate_one(rater: Rater, pair: tuple[list[Prompt], list[Prompt]], *, as_json: bool) -> None:
    from innervoice.tools.manifest.rating import evaluation_values
    from innervoice.tools.raters import ZERO_SHOT_LABEL

    (made,) = rater.rate([pair])
    if as_json:
        print(json.dumps(evaluation_values(made), ensure_ascii=False))
        return
    if not rater.is_trained:
        say(ZERO_SHOT_LABEL)
    for name, score in (*made.scores.items(), ("mean", made.mean)):
        say(f"{name:<16} {score:.3f}")
    if made.description is not None:
        say(made.description)


def _rate_manifest(
    load: dict[str, Any],
    found: list[PairItem | BrokenLine],
    lines: ResultLines,
    concurrency: int | None,
    *,
    zero_shot: bool,
    describe: bool,
    as_json: bool,
) -> None:
    """Rate every pair that has no line yet, under a progress bar. Raises ValueError at the end where some failed."""
    from innervoice.tools.raters import Rater

    console = Console(stderr=True)
    failures = [one.reason for one in found if isinstance(one, BrokenLine)]
    for reason in failures:
        console.print(f"innervoice: {reason}", markup=False, highlight=False, soft_wrap=True)
    items = [one for one in found if isinstance(one, PairItem)]
    left = [item for item in items if item.item_id not in lines.done]
    if left:
        with Rater.load(load, zero_shot=zero_shot, describes=describe) as rater:
            failures += _rated(rater, items, lines, concurrency, console)
    lines.finish(item.item_id for item in items)
    done = [item for item in items if item.item_id in lines.done]
    now = len(done) - len(items) + len(left)
    _report(done, lines, zero_shot=zero_shot, as_json=as_json)
    if not as_json:
        say(f"wrote {lines.path}: {len(done)} of {len(found)} pairs, {now} of them now")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(found)} pairs failed, which are named above: mend them and run again"
        )


def _rated(
    rater: Rater, items: list[PairItem], lines: ResultLines, concurrency: int | None, console: Console
) -> list[str]:
    """Rate the pairs -> the reasons of those that failed, which were printed."""
    from innervoice.tools.manifest.rating import PairRun

    most = rater.engine.parts.core.max_rows
    results = PairRun(rater.rate, lines).run(items, min(concurrency or most, most))
    num_done = sum(item.item_id in lines.done for item in items)
    return show_items("rating", results, num_items=len(items), num_done=num_done, console=console)


def _report(done: list[PairItem], lines: ResultLines, *, zero_shot: bool, as_json: bool) -> None:
    """Print how far the scores agree with those that lines carry, where they carry some."""
    from innervoice.tools.manifest.rating import agreements
    from innervoice.tools.raters import ZERO_SHOT_LABEL

    rated = [lines.done[item.item_id] for item in done]
    found = agreements([item.given for item in done], [one["scores"] for one in rated])
    if as_json:
        made = {name: {"num": one.num, "lcc": one.lcc, "mse": one.mse} for name, one in found.items()}
        print(json.dumps(made, ensure_ascii=False))
        return
    if zero_shot:
        say(ZERO_SHOT_LABEL)
    for name, one in found.items():
        lcc = "none" if one.lcc is None else f"{one.lcc:.3f}"
        say(f"{name:<16} LCC {lcc}, MSE {one.mse:.3f}, of {one.num} pairs")
