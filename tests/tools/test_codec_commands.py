"""innervoice codec: files to files, and one sentence for bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from codec_models import make_module, save

from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes
from innervoice.tools.cli.main import main


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(make_module("mimi"), tmp_path_factory.mktemp("mimi")))


def write(path: Path, num: int, rate: int = 1200, channels: int = 1) -> str:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((num, channels)), rate)
    return str(path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["codec", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("innervoice: ")
    return lines[0]


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg"])
def test_encode_and_decode(
    ending: str, mimi: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, codes, out = (
        write(tmp_path / f"in{ending}", 5000),
        str(tmp_path / "x.codes"),
        tmp_path / f"out{ending}",
    )
    assert main(["codec", "encode", sound, "--codec", mimi, "--codebooks", "3", "--out", codes]) == 0
    assert f"wrote {codes}: mimi, 3 codebooks, 315 ids" in capsys.readouterr().out
    assert main(["codec", "decode", codes, "--codec", mimi, "--out", str(out)]) == 0
    expected = Codec.from_pretrained(mimi).decode(Codes.load(codes)).samples
    written, rate = soundfile.read(out)
    assert (len(written), rate) == (5000, 1200) and len(expected) == 5000
    if ending == ".wav":
        assert np.abs(written - expected.clip(-1, 1)).max() <= 2.0**-14


def test_roundtrip_resamples_and_says_so(
    mimi: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, out = write(tmp_path / "in.wav", 8000, rate=8000), tmp_path / "out.wav"
    assert main(["codec", "roundtrip", sound, "--codec", mimi, "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("has 8000 Hz: resampled to the 1200 Hz of mimi") == 1
    assert soundfile.info(out).frames == 1200


def test_bad_input_is_one_sentence(mimi: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, stereo = write(tmp_path / "in.wav", 500), write(tmp_path / "two.wav", 500, channels=2)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "is mono: mix it to one channel" in refusal(capsys, "roundtrip", stereo, "--codec", mimi)
    assert "the file is empty (0 bytes)" in refusal(
        capsys, "encode", str(tmp_path / "empty.wav"), "--codec", mimi
    )
    assert "config.json does not exist" in refusal(capsys, "encode", sound, "--codec", str(tmp_path))
    assert "must end in .wav, .flac, .ogg" in refusal(
        capsys, "roundtrip", sound, "--codec", mimi, "--out", "x.txt"
    )
    assert "would be overwritten" in refusal(capsys, "roundtrip", sound, "--codec", mimi, "--out", sound)
    assert "num_codebooks is 9, mimi has 1 to 5" in refusal(
        capsys, "encode", sound, "--codec", mimi, "--codebooks", "9"
    )
    assert "is no file of codes" in refusal(
        capsys, "decode", sound, "--codec", mimi, "--out", str(tmp_path / "o.wav")
    )
    other = Codes("dac", (np.zeros(3, np.int64),))
    other.save(tmp_path / "other.codes")
    assert "the codes are of dac and this is mimi" in refusal(
        capsys, "decode", str(tmp_path / "other.codes"), "--codec", mimi, "--out", str(tmp_path / "o.wav")
    )
