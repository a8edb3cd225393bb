"""The command line: innervoice demo | generate | evaluate | serve | replay | simulate | bench | plan | quantize | codec | env.

Bad input is one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

import innervoice
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.quantization import Quantization
from innervoice.tools import environment
from innervoice.tools.cli import codec as codec_commands
from innervoice.tools.cli.answers import answer, say
from innervoice.tools.cli.bench import metrics, stream
from innervoice.tools.cli.decode import decode
from innervoice.tools.cli.demo import demo_command
from innervoice.tools.cli.display import plan_rows, written_as_it_goes, written_table
from innervoice.tools.cli.evaluate import evaluate_command
from innervoice.tools.cli.inputs import read_prompt, read_sampling, read_schedule, read_template, typed
from innervoice.tools.cli.options import JsonOption, ModelOption, ScheduleOption, with_engine_options
from innervoice.tools.cli.outputs import ReplyFiles, is_same
from innervoice.tools.cli.realtime import realtime
from innervoice.tools.cli.replay import replay_command
from innervoice.tools.cli.serve import serve_command
from innervoice.tools.cli.shell import run_in_shell
from innervoice.tools.cli.simulate import simulate_command
from innervoice.tools.manifest.items import ManifestFormat
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed, Sampling

REFUSED = (ValueError, OSError, MemoryError, OutOfCapacity, RequestFailed, EngineDead)
REPLY = Path("reply.wav")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
bench = typer.Typer(help="Time the engine, its parts, and any Realtime server.", rich_markup_mode=None)
bench.command()(stream)
bench.command()(realtime)
bench.command()(metrics)
bench.command()(decode)
app.add_typer(bench, name="bench")
app.add_typer(codec_commands.app, name="codec")


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    """Spoken replies from models that think while they speak."""
    if version:
        print(f"innervoice {innervoice.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command("demo")(demo_command)


@app.command()
@with_engine_options(
    "speech_tokenizer",
    "decoder",
    "revision",
    "local_files_only",
    "load_format",
    "device",
    "dtype",
    "quantization",
    "backend",
    "kv_dtype",
    "activations",
    "max_model_len",
    "streaming",
    "vocoder_noise",
)
def generate(
    model: ModelOption,
    recording: Annotated[
        str | None, typer.Argument(metavar="INPUT.wav", help="A recorded question; -: standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A typed question.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt in place of the model's own.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A variable of the chat template; VALUE is JSON, or else a string."
        ),
    ] = None,
    schedule: ScheduleOption = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Default: the checkpoint's own, as for top-k and top-p.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest that reach this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: drawn, and written to the events.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of the reply, hidden ones included.")
    ] = Sampling.max_new_tokens,
    out: Annotated[
        Path | None,
        typer.Option(help="The sound: .wav, .flac or .ogg. Default: reply.wav, if there is sound."),
    ] = None,
    events: Annotated[Path | None, typer.Option(help="The reply's segments as JSON lines.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A trace of all stages over time, for Perfetto.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="A test set in place of one question: a JSON object a line.")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Directory for a test set's results; a run that was stopped goes on.")
    ] = None,
    form: Annotated[ManifestFormat, typer.Option("--format", help="Whose test set it is.")] = "innervoice",
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Items of a test set at a time. Default: as many as fit.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option(min=2, max=1024, help="Replies to draw; the best-rated one is kept.")
    ] = None,
    by: Annotated[str, typer.Option(help="The score that --best-of goes by, or mean.")] = "mean",
    evaluator: Annotated[
        str | None,
        typer.Option(help="Checkpoint whose heads rate for --best-of. Default: the model judges zero-shot."),
    ] = None,
    *,
    chosen: dict[str, Any],
) -> None:
    """Answer one question, recorded or typed, or a whole test set."""
    if best_of is None and (evaluator or by != "mean"):
        raise ValueError("--by and --evaluator are for the best of several replies: give --best-of too")
    if best_of is not None and (greedy or manifest is not None):
        raise ValueError("--best-of draws several replies to one question: leave --greedy and --manifest out")
    if manifest is None and (out_dir or concurrency or form != "innervoice"):
        raise ValueError("--out-dir, --format and --concurrency are for a test set: give --manifest too")
    outputs = ReplyFiles(REPLY if out is None else out, events, trace)
    if recording and is_same(Path(recording), outputs.paths.values()):
        raise ValueError(f"{recording} is the question and would be overwritten: name another output")
    sampling = read_sampling(
        greedy, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    request = {
        "schedule": read_schedule(schedule),
        "sampling": sampling,
        "system": system and typed(system),
        "template": read_template(template or ()),
    }
    if manifest is not None:
        if out_dir is None:
            raise ValueError("a test set needs a directory for its results: give --out-dir")
        if recording or text is not None or out or events or trace:
            raise ValueError(
                "a test set has its own questions and outputs: give --manifest and --out-dir alone"
            )
        from innervoice.tools.cli.manifest import answer_manifest

        answer_manifest({"model": model} | chosen, request, manifest, out_dir, form, concurrency)
        return
    if best_of is not None:
        from innervoice.tools.cli.best_of import answer_best_of

        answer_best_of(
            {"model": model} | chosen, read_prompt(recording, text), request, outputs, best_of, by, evaluator,
            must_sound=out is not None,
        )  # fmt: skip
        return
    answer(
        {"model": model} | chosen,
        read_prompt(recording, text),
        request,
        outputs,
        must_sound=out is not None,
    )


@app.command()
@with_engine_options(
    "speech_tokenizer",
    "decoder",
    "revision",
    "local_files_only",
    "device",
    "dtype",
    "quantization",
    "kv_dtype",
    "activations",
    "memory_fraction",
    "max_sessions",
    "max_model_len",
)
def plan(model: ModelOption, as_json: JsonOption = False, *, chosen: dict[str, Any]) -> None:
    """Bytes of weights, cache and codec, and how many sessions fit; loads nothing."""
    from innervoice.api.memory_plan import make_plan

    options = EngineOptions(**chosen)
    made = asdict(make_plan(options.locate(model), options))
    print(json.dumps(made, default=str) if as_json else environment.as_text(plan_rows(made)))


app.command("evaluate")(evaluate_command)
app.command("serve")(serve_command)
app.command("replay")(replay_command)
app.command("simulate")(simulate_command)


@app.command()
@with_engine_options("revision", "local_files_only")
def quantize(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Checkpoint directory, or a hub id.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The directory to write; it must not exist, or be empty.")
    ],
    to: Annotated[
        Literal["int8", "int4", "fp8"], typer.Option(help="Format of the weights that are multiplied.")
    ],
    group: Annotated[
        int | None, typer.Option(help="Columns that share an int4 scale: 32 (the default), 64 or 128.")
    ] = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="int4 with a scale and no minimum per group.")
    ] = False,
    keep_head: Annotated[bool, typer.Option("--keep-head", help="Leave the output layer as it is.")] = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Write the language model of a checkpoint with its weights quantised, and print each tensor's size and
    error.
    """
    from innervoice.tools.quantize import Quantizer

    paths = EngineOptions(**chosen).locate(model)
    quantizer = Quantizer(paths, out, Quantization(to, group, symmetric, not keep_head))
    written = written_as_it_goes(quantizer.run(), len(quantizer), Console(stderr=True))
    Console(width=max(80, 60 + max(len(one.name) for one in written))).print(written_table(written))
    say(f"wrote {out}: {quantizer.to}, {sum(one.num_bytes for one in written):,} bytes of weights")


@app.command()
def env() -> None:
    """Print versions, native module, processor, memory and GPUs."""
    print(environment.as_text(environment.report()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises only what --debug asks for, or a bug.

    arguments: None: those of the process, whose streams and signals are taken care of.
    """
    if arguments is None:
        return run_in_shell(lambda: main(sys.argv[1:]))
    words = list(arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _check_directory()
        return app(words, prog_name="innervoice", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # the parser's complaint about options
        if debug or not (usage or isinstance(error, REFUSED)):
            raise
        message = f"{usage().rstrip('.')}; see innervoice --help" if usage else _sentence(error)
        print("innervoice:", " ".join(message.split()), file=sys.stderr)
        return 2


def _check_directory() -> None:
    """Raise ValueError in a directory that was removed, where paths mean nothing and MKL ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current directory was removed: change to one that is there") from None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
