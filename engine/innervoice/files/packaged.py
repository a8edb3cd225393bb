"""The package's own model, which answers when no other is named, and recordings to ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

QUESTIONS = "questions.json"
READ_ALOUD = ("question.wav", "reading.wav")


@dataclass(frozen=True)
class PackagedQuestion:
    """A recording that comes with the package, its words and its tone of voice (both empty if unknown)."""

    path: Path
    text: str = ""
    tone: str = ""


def assets_folder() -> Path:
    """Return the package's folder of models and recordings."""
    return Path(str(resources.files("innervoice"))) / "assets"


def packaged_model(assets: Path | None = None) -> Path:
    """Return the folder of the model that answers when no other is named: innervoice-mini, or where the package
    has none the tiny checkpoint with random weights.
    """
    folder = assets or assets_folder()
    return folder / "mini" if is_trained(folder) else folder / "tiny"


def is_trained(assets: Path | None = None) -> bool:
    """Say whether the package carries a model whose speech has words."""
    return (assets or assets_folder()).joinpath("mini", QUESTIONS).is_file()


def packaged_questions(assets: Path | None = None) -> list[PackagedQuestion]:
    """Return the recordings to ask the packaged model: its own, or else those of a person reading aloud."""
    folder = assets or assets_folder()
    if not is_trained(folder):
        return [PackagedQuestion(folder / name) for name in READ_ALOUD]
    model = packaged_model(folder)
    entries = json.loads((model / QUESTIONS).read_text(encoding="utf-8"))
    return [PackagedQuestion(model / one["file"], one["text"], one["tone"]) for one in entries]
