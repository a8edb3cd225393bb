"""Sound files: every container that libsndfile has holds all samples at their rate, or is refused in one sentence."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile

from innervoice.files import SoundFormat, sound_format
from innervoice.types import Audio

CONTAINERS = sorted(soundfile.available_formats())
RATES = (
    1,
    1000,
    7999,
    8000,
    16000,
    22050,
    24000,
    44100,
    44101,
    48000,
    96000,
    192000,
    250000,
    384000,
    2**31 - 1,
)
# The largest difference of a sample that comes back, of 1: none of 16-bit integers.
LOSSY = {"MPEG_LAYER_III": 0.2, "VORBIS": 0.1, "OPUS": 0.3, "ALAW": 0.05}


def tone(num: int) -> np.ndarray:
    """A quiet tone that repeats exactly, [num] float32."""
    period = np.sin(2 * np.pi * np.arange(480) / 48).astype(np.float32) * 0.3
    return np.resize(period, num)


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return 20 < len(text) < 400 and "\n" not in text and " at 0x" not in text and "cffi" not in text


def save_or_refuse(folder: Path, ending: str, num: int, rate: int) -> bool:
    """Save a tone; True when it came back whole, False when it was refused and nothing is left."""
    path = folder / f"tone.{ending}"
    refusal = None
    try:
        Audio(tone(num), rate).save(path)
    except ValueError as error:
        refusal = error
    if refusal is not None:
        assert one_sentence(refusal) and list(folder.iterdir()) == []
        return False
    with soundfile.SoundFile(path) as file:
        assert (file.frames, file.samplerate, file.channels) == (num, rate, 1), (ending, rate)
        subtype = file.subtype
        samples = file.read(dtype="float32")
    assert len(samples) == num
    most = LOSSY.get(subtype, 1e-4)
    if rate >= 8000:
        assert np.abs(samples - tone(num)).max() <= most, (ending, subtype, rate)
    path.unlink()
    return True


@pytest.mark.parametrize("ending", [*CONTAINERS, "opus", "oga", "aif", "wave"])
def test_every_container_holds_all_samples_or_is_refused(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing may appear in the working directory either
    held = [rate for rate in RATES if save_or_refuse(tmp_path, ending, 3000, rate)]
    if ending in ("WAV", "FLAC", "AIFF", "OGG", "AU", "CAF", "W64"):
        assert {8000, 16000, 22050, 24000, 44100, 48000, 192000} <= set(held)
    if ending == "opus":
        assert held == [8000, 16000, 24000, 48000]
    if ending in ("RAW", "SD2", "XI"):
        assert held == []


def test_a_vorbis_stream_is_longer_than_one_call_holds(tmp_path: Path) -> None:
    assert save_or_refuse(tmp_path, "ogg", 2_100_000, 22050)


@pytest.mark.slow
@pytest.mark.parametrize("num", [1_000_000, 10_000_000])
@pytest.mark.parametrize("ending", [*CONTAINERS, "opus"])
def test_long_sound_in_every_container(tmp_path: Path, ending: str, num: int) -> None:
    held = save_or_refuse(tmp_path, ending, num, 24000)
    assert held == (ending not in ("RAW", "SD2", "XI", "WVE", "HTK") and (ending, num) != ("SDS", 10_000_000))


@pytest.mark.parametrize("num", [1, 2, 479, 65_535, 65_536, 65_537])
def test_lengths_around_a_block(tmp_path: Path, num: int) -> None:
    for ending in ("wav", "flac", "ogg"):
        assert save_or_refuse(tmp_path, ending, num, 22050), ending


def test_channels_and_integers_are_kept(tmp_path: Path) -> None:
    sound = np.stack([tone(70_000), -tone(70_000)], 1)
    for ending in ("wav", "flac", "ogg"):
        Audio(sound, 22050).save(tmp_path / f"a.{ending}")
        found, _ = soundfile.read(tmp_path / f"a.{ending}", dtype="float32")
        assert found.shape == sound.shape and np.abs(found - sound).max() < 0.1
    numbers = np.arange(-32768, 32768, dtype=np.int16)
    Audio(numbers, np.int64(16000)).save(tmp_path / "b.WAV")  # type: ignore[arg-type]
    assert np.array_equal(soundfile.read(tmp_path / "b.WAV", dtype="int16")[0], numbers)


@pytest.mark.parametrize(
    ("name", "samples", "rate", "part"),
    [
        ("a.m4a", tone(9), 22050, "its name must end in .wav, .flac, .ogg"),
        ("a.txt", tone(9), 22050, "or another format of sound"),
        ("a.raw", tone(9), 22050, "by itself does not state its rate"),
        ("a.sd2", tone(9), 22050, "by itself does not state its rate"),
        ("a.mp3", tone(9), 1000, "only supports sample rates of 8000"),
        ("a.opus", tone(9), 22050, "only supports sample rates of 8000"),
        ("a.ogg", tone(9), 200_001, "at most 200000 Hz"),
        ("a.wav", tone(9), 0, "Audio.rate is 0"),
        ("a.wav", tone(9), 22050.5, "Audio.rate is 22050.5"),
        ("a.wav", tone(0), 22050, "samples of shape [0]"),
        ("a.flac", tone(0), 22050, "samples of shape [0]"),
        ("a.wav", np.zeros((2, 2, 2), np.float32), 22050, "samples of shape [2, 2, 2]"),
        ("a.flac", np.zeros((5, 9), np.float32), 22050, "9 channels"),
    ],
)
def test_what_no_file_can_hold(tmp_path: Path, name: str, samples: np.ndarray, rate: int, part: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Audio(samples, rate).save(tmp_path / name)
    assert part in str(caught.value) and one_sentence(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_an_ending_is_wav(tmp_path: Path) -> None:
    Audio(tone(100), 22050).save(tmp_path / "tone")
    assert soundfile.info(tmp_path / "tone").format == "WAV"
    assert sound_format("a.OGG") == SoundFormat("OGG", "VORBIS")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "caf", "mat5"])
def test_a_full_disk_is_the_reason_and_the_old_file_stays(
    tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The limit on a file's size stands for a full disk: a write fails in the middle."""
    path = tmp_path / f"reply.{ending}"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            Audio(noise, 24000).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr().err == ""
