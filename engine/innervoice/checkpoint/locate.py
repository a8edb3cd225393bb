"""Find the parts of a model: a local directory, the parent of all three, a GGUF file, or a hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.gguf import unpack

HUB_PARTS = {"glm-4-voice-9b": ("glm-4-voice-tokenizer", "glm-4-voice-decoder")}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.yaml", "*.pt"]


@dataclass(frozen=True)
class CheckpointPaths:
    """Directories of the language model, the speech tokenizer (None: no speech in) and the
    decoder (None: no sound out).
    """

    model: Path
    speech_tokenizer: Path | None = None
    decoder: Path | None = None


def locate(
    model: str | PathLike[str],
    speech_tokenizer: str | PathLike[str] | None = None,
    decoder: str | PathLike[str] | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> CheckpointPaths:
    """Find or download the parts. Raises FileNotFoundError, ValueError."""
    if not Path(model).is_dir() and isinstance(model, str) and _HUB_ID.fullmatch(model):
        organisation, name = model.split("/")
        default_tokenizer, default_decoder = (
            f"{organisation}/{part}" for part in HUB_PARTS.get(name, ("", ""))
        )
        speech_tokenizer = speech_tokenizer or (default_tokenizer if name in HUB_PARTS else None)
        decoder = decoder or (default_decoder if name in HUB_PARTS else None)
    found = _directory(model, revision, local_files_only)
    parts = {"model": found} if (found / "config.json").exists() else _parts_in(found)
    for name, given in (("speech_tokenizer", speech_tokenizer), ("decoder", decoder)):
        if given is not None:
            parts[name] = _directory(given, None, local_files_only)
    return CheckpointPaths(**parts)


def _directory(place: str | PathLike[str], revision: str | None, local_files_only: bool) -> Path:
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return unpack(path)
    if path.exists():
        raise ValueError(f"{path} is a file: give the directory that holds the checkpoint, or a .gguf file")
    if isinstance(place, str) and _HUB_ID.fullmatch(place):
        return _download(place, revision, local_files_only)
    raise FileNotFoundError(
        f"{path} does not exist: give a checkpoint directory or a hub id such as THUDM/glm-4-voice-9b"
    )


def _download(hub_id: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, local_files_only=local_files_only, allow_patterns=_WANTED
            )
        )
    except Exception as error:  # of the hub, of its HTTP library, of the disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{hub_id} is no local directory and could not be had from the hub ({reason}): download it and give its directory"
        ) from None


def _parts_in(parent: Path) -> dict[str, Path]:
    """The subdirectories of a model's parts, recognised by their files."""
    parts: dict[str, Path] = {}
    for folder in sorted(p for p in parent.iterdir() if p.is_dir()):
        role = _role(folder)
        if role is None:
            continue
        if role in parts:
            raise ValueError(
                f"{parent} holds two for the {role}, {parts[role].name} and {folder.name}: name each part"
            )
        parts[role] = folder
    if "model" not in parts:
        raise FileNotFoundError(
            f"{parent} is no checkpoint: it has no config.json, and no subdirectory holds a language model"
        )
    return parts


def _role(folder: Path) -> str | None:
    if (folder / "config.yaml").exists():
        return "decoder"
    if not (folder / "config.json").exists():
        return None
    config = read_json(folder / "config.json")
    return (
        "speech_tokenizer" if "quantize_vocab_size" in config else "model" if "model_type" in config else None
    )
