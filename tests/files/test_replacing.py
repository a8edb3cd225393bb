"""Files that are written whole or not at all, and files that cannot be read: the reason is the system's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from innervoice.files import check_readable, read_bytes, read_text, replacing
from innervoice.tools.cli.outputs import all_reserved, is_same


def save(path: Path, text: str = "new") -> None:
    with replacing(path) as part:
        part.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755, 0o4755])
def test_the_mode_of_a_replaced_file_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.wav"
    path.write_text("old")
    path.chmod(mode)
    save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        save(tmp_path / "a.wav")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.wav").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.wav"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["a.wav"] and path.read_text() == "old"


def test_behind_a_link_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.wav"
    link.symlink_to(Path("there") / "b.wav")
    for text in ("first", "second"):
        save(link, text)
        assert link.is_symlink() and (tmp_path / "there" / "b.wav").read_text() == text
    assert names(tmp_path / "there") == ["b.wav"]


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and names(tmp_path) == ["a.wav"]


def test_the_longest_name_has_room_for_its_hidden_one(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".wav", "ü" * 125 + ".wav"):
        save(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [make_fifo, make_directory, make_link_to_a_device])
def test_only_a_regular_file_is_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(OSError, match="so name another") as caught, replacing(path):
        pytest.fail("the block began")
    assert caught.value.filename == str(path) and names(tmp_path) == ["a.wav"]
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_pipe_by_its_descriptor_and_a_circle_of_links_are_refused(tmp_path: Path) -> None:
    ends = os.pipe()
    try:
        with pytest.raises(OSError, match="it is no regular file"), replacing(f"/dev/fd/{ends[1]}"):
            pytest.fail("the block began")
    finally:
        for end in ends:
            os.close(end)
    (tmp_path / "a.wav").symlink_to("a.wav")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), replacing(tmp_path / "a.wav"):
        pytest.fail("the block began")
    assert is_same(tmp_path / "a.wav", [tmp_path / "b.wav", tmp_path / "a.wav"])
    with pytest.raises(OSError, match="Too many levels"), all_reserved({"audio": tmp_path / "a.wav"}):
        pytest.fail("the block began")


def test_a_missing_directory_is_named_and_no_hidden_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        save(tmp_path / "none" / "a.wav")
    assert caught.value.filename == str(tmp_path / "none" / "a.wav")


def test_a_directory_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out", folder=True) as part:
        part.mkdir()
        (part / "a").write_text("a")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="no directory"), replacing(tmp_path / "file", folder=True):
        pytest.fail("the block began")


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    remedy = "name another"
    with pytest.raises(FileNotFoundError, match="none does not exist: name another"):
        read_bytes(tmp_path / "none", remedy)
    (tmp_path / "file").write_bytes(b"\xffab")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_bytes(tmp_path / "file" / "below", remedy)
    with pytest.raises(ValueError, match="is a directory: name another"):
        read_bytes(tmp_path, remedy)
    with pytest.raises(ValueError, match="is a device: name another"):
        read_bytes("/dev/zero", remedy)
    with pytest.raises(ValueError, match="null byte"):
        read_bytes("a\0b", remedy)
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(byte 0\): name another"):
        read_text(tmp_path / "file", remedy)
    assert read_bytes(tmp_path / "file", remedy) == b"\xffab"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose its rights and get them back")
def test_a_file_of_somebody_else_is_not_damaged_but_forbidden(tmp_path: Path) -> None:
    secret, shut = tmp_path / "secret.wav", tmp_path / "shut.wav"
    secret.write_bytes(b"RIFF")
    secret.chmod(0o600)
    shut.write_bytes(b"old")
    shut.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for read in (read_bytes, read_text, check_readable):
            with pytest.raises(ValueError, match=r"secret\.wav cannot be read \(Permission denied\)"):
                read(secret, "name another")
        for path in (shut, tmp_path / "new.wav"):
            with pytest.raises(PermissionError) as caught:
                save(path)
            assert caught.value.filename == str(path)
    finally:
        os.seteuid(0)
    assert shut.read_bytes() == b"old" and names(tmp_path) == ["secret.wav", "shut.wav"]
