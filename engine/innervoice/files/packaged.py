"""The package's own model, which answers when no other is named, and recordings to ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

QUESTIONS = "questions.json"


@dataclass(frozen=True)
class PackagedQuestion:
    """A recording that comes with the package, its words and its tone of voice."""

    path: Path
    text: str
    tone: str


def assets_folder() -> Path:
    """Return the package's folder of models and recordings."""
    return Path(str(resources.files("innervoice"))) / "assets"


def packaged_model() -> Path:
    """Return the folder of innervoice-mini, the model that answers when no other is named."""
    return assets_folder() / "mini"


def packaged_questions(model: Path | None = None) -> list[PackagedQuestion]:
    """Return the recordings that come with a model, by default with the packaged one."""
    model = model or packaged_model()
    entries = json.loads((model / QUESTIONS).read_text(encoding="utf-8"))
    return [PackagedQuestion(model / one["file"], one["text"], one["tone"]) for one in entries]
