"""A model's replies to prompts: drawn as they come, and written to files."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

import innervoice
from innervoice.api.event_log import EventLog, write_events
from innervoice.api.options import EngineOptions
from innervoice.files import sound_format
from innervoice.runtime.record import Line
from innervoice.schedule import Schedule
from innervoice.tools.cli.display import Display
from innervoice.tools.cli.outputs import ReplyFiles, staged
from innervoice.tools.packaged import logged
from innervoice.types import Prompt, Reply


def answer(
    load: dict[str, Any],
    prompt: Prompt,
    request: dict[str, Any],
    outputs: ReplyFiles,
    *,
    must_sound: bool = False,
) -> None:
    """Load a model, draw its reply to one prompt as it comes, and write all outputs, or none.

    load: the model and options of the engine, which the event log keeps, so that a replay loads the same.
    must_sound: a reply without sound is an error; otherwise its sound file is left out. Raises ValueError.
    """
    with staged(outputs) as parts, loaded(prompt, request, **load) as engine:
        if can_sound(engine, request["schedule"]):
            sound_format(outputs.audio).check(engine.parts.requests.sample_rate)
        elif must_sound:
            raise ValueError(
                f"cannot write {outputs.audio}, because this model and schedule make no sound: leave --out away"
            )
        with engine.trace(parts.trace) if parts.trace else nullcontext():
            reply, lines = drawn(engine, prompt, request, load)
        written = write_reply(reply, lines, outputs, parts, must_sound)
        if "audio" not in written:
            say(f"the reply has no sound, so {outputs.audio} was not written")
    if written:
        say("wrote " + ", ".join(map(str, written.values())))


def write_reply(
    reply: Reply, lines: list[Line], outputs: ReplyFiles, parts: ReplyFiles, must_sound: bool
) -> dict[str, Path]:
    """Write a reply's sound, if it has one, and the lines of its event log -> the outputs that there are, by name.

    parts: the files to write in place of the outputs. Raises ValueError for a reply without a sound that it must have.
    """
    written = outputs.paths
    if len(reply.audio.samples):
        reply.audio.save(parts.audio)
    elif must_sound:
        raise ValueError(f"cannot write {outputs.audio}, because the reply has no sound: leave --out away")
    else:
        parts.audio.unlink()
        written.pop("audio")
    if parts.events:
        write_events(parts.events, lines)
    return written


def drawn(
    engine: innervoice.Engine, prompt: Prompt, request: dict[str, Any], load: dict[str, Any]
) -> tuple[Reply, list[Line]]:
    """Return the reply to a prompt, drawn while it comes, and the lines of its event log."""
    log = EventLog()
    lines: list[Line] = []
    with (
        engine.stream(prompt, **{"realtime": False, **request}) as stream,
        Display(Console()) as display,
    ):
        lines.append({**(stream.record or {}), "engine": logged(load)})
        for event in stream:
            complete = log.feed(event)
            lines += complete
            display.show(complete, log.open)
        return stream.reply(), lines


def can_sound(engine: innervoice.Engine, schedule: Schedule | None) -> bool:
    """Whether a reply under this schedule (None: the model's own) may have sound."""
    from innervoice.codec.speech_codec import NullSpeechOutput

    if isinstance(engine.parts.core.speech, NullSpeechOutput):
        return False
    if schedule is None or not schedule.guided:
        return True
    return any("speech" in (one.kind, one.voice_as) for one in schedule.segments)


def loaded(prompt: Prompt, request: dict[str, Any], model: str, **options: Any) -> innervoice.Engine:
    """An engine that can do this request: what the files of config and tokenizer refuse is refused first."""
    from innervoice.api.preparation import prepare

    prepared = prepare(model, EngineOptions().changed(**options))
    prepared.check(prompt, **request)
    return innervoice.Engine.load(prepared)


def say(text: str) -> None:
    """Print a line at once, however long."""
    print(text, flush=True)
