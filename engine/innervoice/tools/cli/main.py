"""The command line: innervoice demo | generate | replay | simulate | bench | plan | quantize | codec | env.

Bad input is one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from innervoice import __version__
from innervoice.api.engine import Engine
from innervoice.api.event_log import EventLog, Line, write_events
from innervoice.api.memory_plan import make_plan
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.codec.audio import read_audio
from innervoice.schedule import PRESETS, Schedule
from innervoice.tools import environment
from innervoice.tools.cli import codec as codec_commands
from innervoice.tools.cli.bench import metrics, stream
from innervoice.tools.cli.decode import decode
from innervoice.tools.cli.display import Display, plan_rows, written_as_it_goes, written_table
from innervoice.tools.cli.replay import replay_command
from innervoice.tools.cli.simulate import simulate_command
from innervoice.tools.quantize import Quantizer
from innervoice.types import EngineDead, OutOfCapacity, Prompt, RequestFailed, Sampling, Text

REFUSED = (ValueError, OSError, OutOfCapacity, RequestFailed, EngineDead)
SOUND = (".wav", ".flac", ".ogg")
DEMO_SAMPLING = Sampling(seed=34, max_new_tokens=200)  # a seed whose reply reflects twice and ends by itself

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
bench = typer.Typer(help="Time parts of the engine.", rich_markup_mode=None)
bench.command()(stream)
bench.command()(metrics)
bench.command()(decode)
app.add_typer(bench, name="bench")
app.add_typer(codec_commands.app, name="codec")

Model = Annotated[
    str, typer.Option(help="Checkpoint directory, the parent of all three directories, or a hub id.")
]
SpeechTokenizer = Annotated[
    str | None, typer.Option(help="Directory of the speech tokenizer, if not beside the model.")
]
Decoder = Annotated[
    str | None, typer.Option(help="Directory of the speech decoder, if not beside the model.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
LocalOnly = Annotated[bool, typer.Option("--local-files-only", help="Download nothing.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Type of the weights, and of the cache."),
]
QuantizationName = Annotated[
    Literal["int8", "int4", "fp8"] | None,
    typer.Option("--quantization", help="Quantise the weights while they are read."),
]
KvDtype = Annotated[
    Literal["auto", "fp8_e4m3"], typer.Option("--kv-dtype", help="Type of the cache; auto: the model's.")
]
MemoryFraction = Annotated[float, typer.Option(help="Share of the device's memory to use.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest sequence, prompt included, in tokens.")]
Streaming = Annotated[
    Literal["offline", "steady", "reference"], typer.Option(help="Sound at the end, or in chunks.")
]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule", help=f"A .json file, or one of {', '.join(PRESETS)}.")
]


@dataclass(frozen=True)
class Outputs:
    """Where a reply goes; None: not asked for."""

    audio: Path
    events: Path | None = None
    trace: Path | None = None


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
        print(f"innervoice {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out_dir: Annotated[
        Path, typer.Option(help="Directory for reply.wav, events.jsonl and trace.json.")
    ] = Path("."),
    schedule: ScheduleName = None,
) -> None:
    """Answer the packaged recording with the packaged tiny checkpoint; its weights are random."""
    assets = Path(str(resources.files("innervoice"))) / "assets"
    chosen = read_schedule(schedule) or Schedule.preset("stitch_s", reflection_budget=20)
    outputs = Outputs(out_dir / "reply.wav", out_dir / "events.jsonl", out_dir / "trace.json")
    say(
        "The weights of the packaged checkpoint are random: this shows the machinery, not a voice, and its words mean nothing.\n"
    )
    load = {"model": assets / "tiny", "device": "cpu", "dtype": "float32", "streaming": "reference"}
    answer(load, assets / "question.wav", {"schedule": chosen, "sampling": DEMO_SAMPLING}, outputs)


@app.command()
def generate(
    model: Model,
    recording: Annotated[str | None, typer.Argument(metavar="INPUT.wav", help="A recorded question.")] = None,
    text: Annotated[str | None, typer.Option(help="A typed question.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt in place of the model's own.")] = None,
    speech_tokenizer: SpeechTokenizer = None,
    decoder: Decoder = None,
    revision: Revision = None,
    local_files_only: LocalOnly = False,
    schedule: ScheduleName = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Default: the checkpoint's own, as for top-k and top-p.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest that reach this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: drawn, and told in the events.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of the reply, hidden ones included.")
    ] = Sampling.max_new_tokens,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: QuantizationName = None,
    kv_dtype: KvDtype = "auto",
    max_model_len: MaxModelLen = None,
    backend: Annotated[
        Literal["auto", "native", "plain"],
        typer.Option(help="Of the language model on a CPU: native code, or PyTorch."),
    ] = "auto",
    load_format: Annotated[
        Literal["auto", "dummy"], typer.Option(help="dummy: random weights, from the config alone.")
    ] = "auto",
    streaming: Annotated[
        Literal["offline", "steady", "reference"], typer.Option(help="Sound at the end, or in chunks.")
    ] = "steady",
    vocoder_noise: Annotated[Literal["on", "off"], typer.Option(help="off: reproducible sound.")] = "on",
    out: Annotated[Path, typer.Option(help="The sound: .wav, .flac or .ogg.")] = Path("reply.wav"),
    events: Annotated[Path | None, typer.Option(help="The reply's segments as JSON lines.")] = None,
    trace: Annotated[Path | None, typer.Option(help="What ran when, for Perfetto.")] = None,
) -> None:
    """Answer one question, recorded or typed."""
    sampling = read_sampling(
        greedy, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    request = {"schedule": read_schedule(schedule), "sampling": sampling, "system": system}
    load: dict[str, Any] = {
        "model": model,
        "speech_tokenizer": speech_tokenizer,
        "decoder": decoder,
        "revision": revision,
    }
    load |= {
        "local_files_only": local_files_only,
        "load_format": load_format,
        "device": device,
        "dtype": dtype,
    }
    load |= {"quantization": quantization, "backend": backend, "kv_dtype": kv_dtype}
    load |= {"max_model_len": max_model_len, "streaming": streaming, "vocoder_noise": vocoder_noise == "on"}
    outputs = Outputs(out, events, trace)
    if recording and Path(recording).resolve() in (path.resolve() for path in _paths(outputs).values()):
        raise ValueError(f"{recording} is the question and would be overwritten: name another output")
    answer(load, read_prompt(recording, text), request, outputs)


@app.command()
def plan(
    model: Model,
    speech_tokenizer: SpeechTokenizer = None,
    decoder: Decoder = None,
    revision: Revision = None,
    local_files_only: LocalOnly = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: QuantizationName = None,
    kv_dtype: KvDtype = "auto",
    memory_fraction: MemoryFraction = 0.9,
    max_sessions: Annotated[
        int | None, typer.Option(help="Sessions at once; default: as many as fit.")
    ] = None,
    max_model_len: MaxModelLen = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as a JSON object.")] = False,
) -> None:
    """Bytes of weights, cache and codec, and how many sessions fit; loads nothing."""
    paths = locate(model, speech_tokenizer, decoder, revision=revision, local_files_only=local_files_only)
    limits: dict[str, Any] = {
        "memory_fraction": memory_fraction,
        "max_sessions": max_sessions,
        "max_model_len": max_model_len,
    }
    made = asdict(
        make_plan(paths, device=device, dtype=dtype, quantization=quantization, kv_dtype=kv_dtype, **limits)
    )
    if as_json:
        print(json.dumps(made, default=str))
    else:
        print(environment.as_text(plan_rows(made)))


app.command("replay")(replay_command)
app.command("simulate")(simulate_command)


@app.command()
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
    symmetric: Annotated[bool, typer.Option("--symmetric", help="int4 without a minimum a group.")] = False,
    keep_head: Annotated[bool, typer.Option("--keep-head", help="Leave the output layer as it is.")] = False,
    revision: Revision = None,
    local_files_only: LocalOnly = False,
) -> None:
    """Write the language model of a checkpoint with its weights quantised, and say each tensor's size and error."""
    paths = locate(model, revision=revision, local_files_only=local_files_only)
    quantizer = Quantizer(paths, out, Quantization(to, group, symmetric, not keep_head))
    written = written_as_it_goes(quantizer.run(), len(quantizer), Console(stderr=True))
    Console(width=max(80, 60 + max(len(one.name) for one in written))).print(written_table(written))
    say(f"wrote {out}: {quantizer.to}, {sum(one.num_bytes for one in written):,} bytes of weights")


@app.command()
def env() -> None:
    """What runs here: versions, native module, processor, memory, GPUs."""
    print(environment.as_text(environment.report()))


def answer(load: dict[str, Any], prompt: Prompt, request: dict[str, Any], outputs: Outputs) -> None:
    """Load a model, draw its reply to one prompt as it comes, and write what was asked for, all of it or nothing."""
    console = Console()
    with staged(outputs) as parts, Engine.from_pretrained(**load) as engine:
        log, lines = EventLog(), list[Line]()
        traced = engine.trace(parts.trace) if parts.trace else nullcontext()
        with (
            traced,
            engine.stream(prompt, **{"realtime": False, **request}) as stream,
            Display(console) as display,
        ):
            lines.append(
                {**(stream.record or {}), "engine": {name: _plain(value) for name, value in load.items()}}
            )
            for event in stream:
                complete = log.feed(event)
                lines += complete
                display.show(complete, log.open)
            reply = stream.reply()
        reply.audio.save(parts.audio)
        if parts.events:
            write_events(parts.events, lines)
    say("wrote " + ", ".join(str(path) for path in (outputs.audio, outputs.events, outputs.trace) if path))


@contextmanager
def staged(outputs: Outputs) -> Iterator[Outputs]:
    """Hidden files beside the outputs, moved into their places when the block ends well and removed when it does not.

    Raises OSError or ValueError at once when an output cannot be written.
    """
    if outputs.audio.suffix not in SOUND:
        raise ValueError(f"cannot write sound as {outputs.audio}: its name must end in {', '.join(SOUND)}")
    targets = {name: path.resolve() for name, path in _paths(outputs).items()}
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"two outputs go to {max(map(str, targets.values()))}: give each a path of its own")
    parts = {
        name: path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        for name, path in targets.items()
    }
    try:
        for name, part in parts.items():
            _check_writable(targets[name], part)
        yield Outputs(**parts)
        for name, part in parts.items():
            os.replace(part, targets[name])
    finally:
        for part in parts.values():
            _remove(part)


def read_schedule(name: str | None) -> Schedule | None:
    """A preset by name or a schedule from a JSON file; None: the model's own. Raises FileNotFoundError, ValueError."""
    if name is None:
        return None
    if name.endswith(".json") or os.sep in name:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f"there is no schedule file {name}: give a preset ({', '.join(PRESETS)}) or a .json file"
            )
        return Schedule.load(name)
    return Schedule.preset(name)


def read_sampling(greedy: bool, max_new_tokens: int, **given: float | None) -> Sampling:
    """Sampling from options; None stands for the checkpoint's own. Raises ValueError."""
    named = {name: value for name, value in given.items() if value is not None}
    if greedy and named:
        option = next(iter(named)).replace("_", "-")
        raise ValueError(
            f"--greedy takes the likeliest token and --{option} shapes a draw: give one of the two"
        )
    if greedy:
        named = {"temperature": 0.0}
    return Sampling(max_new_tokens=max_new_tokens, **named)  # type: ignore[arg-type]


def read_prompt(recording: str | None, text: str | None) -> Prompt:
    """The typed question, or the samples of the recorded one. Raises FileNotFoundError, ValueError."""
    if text is not None:
        if recording is not None:
            raise ValueError(f"both {recording} and --text were given: ask one question")
        return Text(text)
    if recording is None:
        raise ValueError("no question: give a recording or --text")
    return read_audio(recording)


def say(text: str) -> None:
    """A line on stdout, never broken by us."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises only what --debug asks for, or a fault of ours."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        return (
            app([word for word in words if word != "--debug"], prog_name="innervoice", standalone_mode=False)
            or 0
        )
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # the parser's complaint about options
        if debug or not (usage or isinstance(error, REFUSED)):
            raise
        message = f"{usage().rstrip('.')}; see innervoice --help" if usage else _sentence(error)
        print("innervoice:", " ".join(message.split()), file=sys.stderr)
        return 2


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _paths(outputs: Outputs) -> dict[str, Path]:
    return {f.name: path for f in fields(outputs) if (path := getattr(outputs, f.name)) is not None}


def _check_writable(target: Path, part: Path) -> None:
    if target.exists() and not target.is_file():
        raise ValueError(f"cannot write {target}: it is not a regular file, so name another")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {target}: there is no directory {target.parent}, so create it or name another"
        )
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}, so name another place") from None


def _remove(part: Path) -> None:
    with suppress(OSError):  # its folder is gone or was never one
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
