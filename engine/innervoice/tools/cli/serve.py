"""The command innervoice serve: the Realtime protocol and chat completions over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import innervoice
from innervoice.api.options import EngineOptions
from innervoice.files import read_text
from innervoice.server.options import ServerOptions
from innervoice.tools.cli.inputs import read_schedule
from innervoice.tools.cli.options import ScheduleOption, with_engine_options
from innervoice.tools.packaged import SCHEDULE, packaged_load

KEY_VARIABLE = "INNERVOICE_API_KEY"
TRANSCRIPTION_KEY_VARIABLE = "INNERVOICE_TRANSCRIPTION_KEY"


@with_engine_options(
    "speech_tokenizer",
    "decoder",
    "revision",
    "local_files_only",
    "load_format",
    "device",
    "dtype",
    "quantization",
    "codec_dtype",
    "kv_dtype",
    "activations",
    "memory_fraction",
    "max_sessions",
    "max_model_len",
    "threads",
    "streaming",
    "vocoder_noise",
    "share_prefixes",
    "backend",
    "policy",
    "max_load",
    "max_waiting",
    "preempt",
    "reader_timeout_s",
    "name",
    "warmup",
    changes_only=True,
)
def serve_command(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory or hub id; default: the packaged innervoice-mini."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Name of the model for clients; default: that of its directory.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = ServerOptions.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = ServerOptions.port,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Key that clients must give, or @FILE with one a line; several may be given. Default: "
            f"{KEY_VARIABLE} of the environment, or else no key."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may use the server, or *; several may be given."),
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate (PEM), for https and wss.")] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="Its private key, if not in the same file.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that running replies have to end after SIGTERM.")
    ] = ServerOptions.drain_s,
    max_session_s: Annotated[
        float, typer.Option(help="Seconds after which a session ends.")
    ] = ServerOptions.max_session_s,
    schedule: ScheduleOption = None,
    vad: Annotated[
        Literal["silero", "energy"], typer.Option(help="How speech is found in the sound of users.")
    ] = ServerOptions.vad,
    transcription_url: Annotated[
        str | None,
        typer.Option(
            help="Base URL of a service with /audio/transcriptions, for the words of users; its key is "
            f"{TRANSCRIPTION_KEY_VARIABLE} of the environment."
        ),
    ] = None,
    transcription_model: Annotated[
        str, typer.Option(help="Model of that service.")
    ] = ServerOptions.transcription_model,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="So many engines behind one address, by Ray Serve: on this machine, or on the cluster that "
            "RAY_ADDRESS names. Default: one, without Ray."
        ),
    ] = None,
    *,
    chosen: dict[str, Any],
) -> None:
    """Serve a model to clients of OpenAI's Realtime API and of chat completions."""
    try:
        from innervoice.server.process import bind, serve
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed, which the server needs: pip install 'innervoice[server]'"
        ) from error

    options = ServerOptions(
        host=host,
        port=port,
        api_keys=read_keys(api_key),
        allow_origins=tuple(allow_origin or ()),
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        drain_s=drain_s,
        max_session_s=max_session_s,
        schedule=read_schedule(schedule or (SCHEDULE if model is None else None)),
        vad=vad,
        transcription_url=transcription_url,
        transcription_key=os.environ.get(TRANSCRIPTION_KEY_VARIABLE),
        transcription_model=transcription_model,
    )
    from innervoice.api.preparation import prepare

    load = packaged_load(chosen) if model is None else {"model": model} | chosen
    name = served_name or (f"innervoice-{Path(load['model']).name}" if model is None else Path(model).name)
    prepared = prepare(
        load["model"], EngineOptions().changed(**{k: v for k, v in load.items() if k != "model"})
    )
    prepared.check(None, schedule=options.schedule)
    if replicas is not None:
        warn(options)
        start_replicas(load, name, options, replicas)
        return
    taken = bind(options)
    warn(options)
    with taken, innervoice.Engine.load(prepared) as engine:
        serve(engine, name, options, taken)


def start_replicas(load: dict[str, Any], name: str, options: ServerOptions, replicas: int) -> None:
    """Serve by Ray until a signal. load: the model and its engine's options.

    Raises ValueError without Ray, OSError where the port is taken.
    """
    if replicas < 1:
        raise ValueError(f"replicas is {replicas}: it must be 1 or more")
    if not options.port:
        raise ValueError("port is 0: with --replicas give the port that Ray Serve listens on")
    try:
        from innervoice.server.process import bind
        from innervoice.server.ray.command import ADDRESS, serve_replicas
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed, which --replicas needs: pip install 'innervoice[server,ray]'"
        ) from error
    if ADDRESS not in os.environ:  # a running cluster may listen there already
        bind(options).close()
    engine = {name: value for name, value in load.items() if name != "model"}
    serve_replicas(str(load["model"]), name, engine, options, replicas)


def read_keys(given: list[str] | None) -> tuple[str, ...]:
    """The keys of the command line, of files, or else of the environment. Raises ValueError, FileNotFoundError."""
    keys: list[str] = []
    for one in given or os.environ.get(KEY_VARIABLE, "").split():
        if one.startswith("@"):
            lines = read_text(
                one[1:], "give --api-key a file with one key a line", "file of keys"
            ).splitlines()
            keys += [line.strip() for line in lines if line.strip()]
        else:
            keys.append(one)
    return tuple(keys)


def warn(options: ServerOptions) -> None:
    """Say on stderr that everybody may use a server without a key that other machines reach."""
    if not options.api_keys and not options.is_loopback:
        print(
            f"innervoice: WARNING: {options.host} can be reached from other machines and there is no API key, so "
            "that everybody there may use this server: give --api-key",
            file=sys.stderr,
            flush=True,
        )
