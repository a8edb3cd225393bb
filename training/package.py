"""The stage `package`: the exported model, its questions, its card and its notice become the package's own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile

from training.export import DECODER_DIR, LM_DIR, TOKENIZER_DIR, export
from training.speech.plan import TONE_FACTORS, Utterance
from training.workdir import Log, save_json, stage_dir, work_dir

TARGET = Path(__file__).parent.parent / "engine" / "innervoice" / "assets" / "mini"
TEMPLATES = Path(__file__).parent / "card"
MOST_BYTES = 30_000_000
RATE = 16000  # of the questions
RECORDS = "mini.json"  # what `python -m bench.mini --json` wrote into the folder of logs

# Held-out voices and, but for the birthday, held-out sentences. The birthday's words are glad and its voice is not.
QUESTIONS = {
    "dog": Utterance("Hi, my dog is very sick and I feel worried.", "am_puck"),
    "birthday": Utterance("Tomorrow is my birthday.", "bf_emma", *TONE_FACTORS["low"], tone="low"),
    "miles": Utterance("I ran five miles without a break.", "bm_george"),
}


def package(target: Path = TARGET) -> None:
    """Export the model and write it, and all that goes with it, into the package; its size goes to the log.

    Raises:
        RuntimeError: The files are larger than `MOST_BYTES` together.
        FileNotFoundError: `bench.mini` has not measured the model.
    """
    table = figures(work_dir() / "logs" / RECORDS)
    export()
    copy_model(target)
    write_questions(target)
    for name in ("README.md", "NOTICE.md"):
        text = (TEMPLATES / name).read_text(encoding="utf-8").replace("{figures}", table)
        (target / name).write_text(text, encoding="utf-8")
    size = size_of(target)
    Log("package").write(event="package", megabytes=round(size / 1e6, 2))
    if size > MOST_BYTES:
        raise RuntimeError(f"{target} has {size:,} bytes, more than {MOST_BYTES:,}: make a network smaller")


def copy_model(target: Path) -> None:
    """Replace a folder by the exported model."""
    shutil.rmtree(target, ignore_errors=True)
    for name in (TOKENIZER_DIR, DECODER_DIR, LM_DIR):
        shutil.copytree(stage_dir("export") / name, target / name, copy_function=shutil.copyfile)


def write_questions(target: Path) -> None:
    """Write the recordings that the demo asks, and last the list of them, by which the package is known to be whole."""
    folder = target / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    for name, utterance in QUESTIONS.items():
        soundfile.write(folder / f"{name}.flac", recording(utterance), RATE)
    entries = [
        {"file": f"questions/{name}.flac", "text": entry.text, "tone": entry.tone}
        for name, entry in QUESTIONS.items()
    ]
    save_json(target / "questions.json", entries)


def recording(utterance: Utterance) -> np.ndarray:
    """Return a question as int16."""
    from training.speech.synth import say  # the synthesiser is installed for training alone

    return say(utterance, RATE)


def figures(path: Path) -> str:
    """Return what was measured as a table of Markdown.

    Raises:
        FileNotFoundError: Nothing was.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run python -m bench.mini --model EXPORT --json {path}")
    rows = ["| figure | of | value | the synthesiser itself |", "|---|---|---|---|"]
    for record in json.loads(path.read_text(encoding="utf-8")):
        peer = "" if record["peer"] is None else f"{record['peer']:.3f}"
        details = record["details"]
        name = record["name"]
        if "cpu_s_per_audio_s" in details:
            name += (
                f" ({details['log_spectral_distance_db']} dB, {details['cpu_s_per_audio_s']} CPU s a second)"
            )
        rows.append(f"| {name} | {record['shape']} | {record['ours']:.3f} | {peer} |")
    return "\n".join(rows)


def size_of(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
