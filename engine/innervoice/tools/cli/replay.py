"""innervoice replay: a reply made again from its event log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import innervoice
from innervoice.api.options import EngineOptions
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.files import sound_format
from innervoice.tools.cli.options import with_engine_options
from innervoice.tools.cli.outputs import refuse_same, reserved
from innervoice.tools.replay.recording import RecordedReply
from innervoice.types import Audio, RequestFailed


@with_engine_options("speech_tokenizer", "decoder", "device", "dtype", changes_only=True)
def replay_command(
    log: Annotated[str, typer.Argument(metavar="EVENTS.jsonl", help="What generate --events wrote.")],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint directory or hub id, if it is not where the log has it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The replayed sound: .wav, .flac or .ogg.")] = None,
    *,
    chosen: dict[str, Any],
) -> None:
    """Make a reply again from its event log, and compare every token and every sample.

    Engine options that are given replace those of the log; another device or type may compute other results.
    """
    from innervoice.tools.replay.replay import replay

    recording = RecordedReply.load(log)
    if out is not None:
        refuse_same(Path(log), out)
    recorded = {"model": None} | dict(recording.engine)
    recorded_model = recorded.pop("model")
    if isinstance(recorded.get("streaming"), dict):
        recorded["streaming"] = SteadySettings(**recorded["streaming"])
    model = model or recorded_model
    if model is None:
        raise ValueError(f"{log} does not say which model it was made with: give --model")
    try:
        options = EngineOptions().changed(**recorded | chosen)
    except TypeError as error:
        raise ValueError(f"{log} was made with options of another version: {error}") from error
    with _sound_at(out, recording) as part:
        with innervoice.Engine.from_pretrained(model, options) as engine:
            made = replay(engine, recording)
        if part is not None:
            Audio(made.samples, recording.chunks[0].rate).save(part)
    if made.mismatch is not None:
        raise RequestFailed(f"{log} was not reproduced: {made.mismatch}")
    print(f"the same: {len(recording.tokens)} tokens, {recording.num_samples} samples")


@contextmanager
def _sound_at(out: Path | None, recording: RecordedReply) -> Iterator[Path | None]:
    """The hidden file of the replayed sound, None where none is asked for. Raises ValueError, OSError."""
    if out is None:
        yield None
        return
    if not recording.num_samples:
        raise ValueError(f"cannot write {out}, because the recorded reply has no sound: leave --out away")
    sound_format(out).check(recording.chunks[0].rate)
    with reserved(out) as part:
        yield part
