"""innervoice demo: the packaged recordings, answered by the packaged model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from innervoice.api.event_log import write_events
from innervoice.files import PackagedQuestion, packaged_questions
from innervoice.runtime.record import Line
from innervoice.schedule import Schedule
from innervoice.telemetry.metrics import find_underruns
from innervoice.tools.cli.answers import drawn, loaded, say
from innervoice.tools.cli.inputs import read_prompt, read_schedule
from innervoice.tools.cli.options import ScheduleOption
from innervoice.tools.cli.outputs import all_reserved, create_folder
from innervoice.tools.packaged import SCHEDULE, packaged_load
from innervoice.types import Audio, Sampling

SAMPLING = Sampling(temperature=0.0, max_new_tokens=600)
PAUSE_S = 0.5  # between two replies of the sound file
CPU = {"device": "cpu", "dtype": "float32"}


def demo_command(
    out_dir: Annotated[
        Path, typer.Option(help="Directory for reply.wav, the events and trace.json; it is created.")
    ] = Path("."),
    schedule: ScheduleOption = None,
) -> None:
    """Answer the packaged recordings with the packaged model."""
    chosen = read_schedule(schedule)
    create_folder(out_dir)
    request = {"schedule": chosen or Schedule.preset(SCHEDULE), "sampling": SAMPLING}
    answer_all(packaged_load(CPU), packaged_questions(), request, out_dir)


def answer_all(
    load: dict[str, Any], questions: list[PackagedQuestion], request: dict[str, Any], folder: Path
) -> None:
    """Draw the replies to some recordings, and write them as one sound, an event log for each, and a trace.

    All files are written, or none. Raises ValueError, OSError.
    """
    events = {
        f"events-{number}": folder / f"events-{number}.jsonl" for number in range(1, len(questions) + 1)
    }
    outputs: dict[str, Path | None] = {
        "audio": folder / "reply.wav",
        **events,
        "trace": folder / "trace.json",
    }
    sounds: list[Audio] = []
    with (
        all_reserved(outputs) as parts,
        loaded(read_prompt(str(questions[0].path), None), request, **load) as engine,
    ):
        with engine.trace(parts["trace"]):
            for question, name in zip(questions, events, strict=True):
                say(f"{question.path.name}: “{question.text}” ({question.tone})")
                reply, lines = drawn(engine, read_prompt(str(question.path), None), request, load)
                say(f"{gaps_of(lines)}\n")
                sounds.append(reply.audio)
                write_events(parts[name], lines)
        joined(sounds).save(parts["audio"])
    say("wrote " + ", ".join(str(path) for path in outputs.values()))


def gaps_of(lines: list[Line]) -> str:
    """Return a sentence on the silences that a player hears who starts with a reply's first chunk, from its lines."""
    chunks = [line for line in lines if line["kind"] == "audio"]
    if len(chunks) < 2:
        return "no gap: the sound came in one piece"
    gaps = find_underruns([(line["t"], line["samples"]) for line in chunks], chunks[0]["rate"])
    if not gaps.count:
        return "no gap in the playback"
    return f"gaps in the playback: {gaps.count} chunks late, by {gaps.max_s:.2f} s at most"


def joined(sounds: list[Audio]) -> Audio:
    """Return sounds of one rate as one, with a pause between them."""
    pause = np.zeros(round(PAUSE_S * sounds[0].rate), np.float32)
    pieces = [piece for sound in sounds for piece in (pause, np.asarray(sound.samples, np.float32))]
    return Audio(np.concatenate(pieces[1:]), sounds[0].rate)
