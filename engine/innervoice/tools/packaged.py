"""Options by which the package's own model is loaded where a command names no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.files import packaged_model

SCHEDULE = "reempathy"  # the order of reflection and reply where no other is asked for
# The flow of the packaged model is a regression: one step of the solver gives the mel that ten give. A first chunk of 10 tokens
# ends before the next one is there, after a segment of text and one of reflection.
STREAMING = SteadySettings(first=20, steps=1, look_back=172)


def packaged_load(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the packaged model and the options of its engine: those chosen, with the solver's steps that it needs."""
    load = {"model": str(packaged_model()), **chosen}
    if load.get("streaming", "steady") == "steady":
        load["streaming"] = STREAMING
    return load


def logged(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model and its options as an event log keeps them, settings of a dataclass as an object."""
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in load.items()
    }
