"""Paths in messages: every refusal of a file is one line, whatever its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innervoice.codec.audio import read_audio
from innervoice.files import check_readable, read_bytes, read_text

READERS: list[Callable[[Any], Any]] = [
    lambda path: read_bytes(path, "name a file", "log"),
    lambda path: read_text(path, "name a file"),
    lambda path: check_readable(path, "name a file"),
    read_audio,
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("none.wav", "none.wav"),
        ("ünï 🙂", "ünï 🙂"),
        ("", "''"),
        (" ", "' '"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[2J", r"'\x1b[2J'"),
        ("\0", r"'\x00'"),
        ("a\udcff", r"'a\udcff'"),
        ("a" * 5000, "aaa..."),
    ],
)
def test_a_path_is_named_on_one_line(read: Callable[[Any], Any], name: str, shown: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError)) as raised:
        read(name)
    sentence = str(raised.value)
    assert shown in sentence and "\n" not in sentence and len(sentence) < 400


@pytest.mark.parametrize("read", READERS)
def test_devices_and_directories_are_no_files(read: Callable[[Any], Any], tmp_path: Path) -> None:
    for path, what in (("/dev/zero", "a device"), (tmp_path, "a directory")):
        with pytest.raises(ValueError, match=f"is {what}"):
            read(path)


def test_a_file_of_another_encoding_and_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a\nb"
    path.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(byte 3\): name a file") as raised:
        read_text(path, "name a file")
    assert "\n" not in str(raised.value)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty") as raised:
        read_audio(path)
    assert "\n" not in str(raised.value)
