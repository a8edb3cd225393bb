"""innervoice replay: a reply made again from its event log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from innervoice.api.engine import Engine
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay
from innervoice.types import Audio, RequestFailed


def replay_command(
    log: Annotated[str, typer.Argument(metavar="EVENTS.jsonl", help="What generate --events wrote.")],
    model: Annotated[str | None, typer.Option(help="The model, where it is not where it was.")] = None,
    speech_tokenizer: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Another device than it was made on, whose arithmetic may differ.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None, typer.Option(help="Another type.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The sound that comes of it: .wav, .flac or .ogg.")] = None,
) -> None:
    """Make a reply again from its event log, and say whether every token and every sample is the same."""
    recording = RecordedReply.load(log)
    given = {
        "model": model,
        "speech_tokenizer": speech_tokenizer,
        "decoder": decoder,
        "device": device,
        "dtype": dtype,
    }
    options: dict[str, Any] = dict(recording.engine) | {
        name: value for name, value in given.items() if value is not None
    }
    if options.get("model") is None:
        raise ValueError(f"{log} does not say which model it was made with: give --model")
    with Engine.from_pretrained(**options) as engine:
        made = replay(engine, recording)
    if out is not None:
        Audio(made.samples, recording.chunks[0].rate if recording.chunks else 1).save(out)
    if made.mismatch is not None:
        raise RequestFailed(f"{log} was not reproduced: {made.mismatch}")
    print(f"the same: {len(recording.tokens)} tokens, {recording.num_samples} samples")
