"""Voice activity: the port of Silero against its original, the packaged recordings and noise, and lanes in batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from innervoice.server.turn_detector import (
    SpeechStarted,
    SpeechStopped,
    TurnDetection,
    TurnDetector,
    VoicedFrame,
)
from innervoice.server.vad.choose import load_network
from innervoice.server.vad.energy import EnergyNetwork
from innervoice.server.vad.listener import SpeechListener
from innervoice.server.vad.network import FRAME_LEN, FRAME_MS, RATE, SpeechNetwork
from innervoice.server.vad.silero import SileroNetwork, find_weights
from innervoice.types import Pcm16, Samples

WEIGHTS = find_weights()


def spoken(path: Path, rate: int = RATE) -> Samples:
    """A recording at a rate."""
    samples, own = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, own, rate).astype(np.float32)


def frames_of(samples: Samples) -> Samples:
    return samples[: len(samples) // FRAME_LEN * FRAME_LEN].reshape(-1, FRAME_LEN)


def judge(network: SpeechNetwork, frames: Samples) -> Samples:
    """Probabilities of one listener's frames [n, 512] -> [n]."""
    states = [network.begin()]
    found = []
    for frame in frames:
        speech, states = network.push(frame[None], states)
        found.append(speech[0])
    return np.array(found)


@pytest.fixture(scope="module")
def silero() -> SileroNetwork:
    assert WEIGHTS is not None, "the test requirements bring silero-vad"
    return SileroNetwork.load(WEIGHTS)


def test_the_port_equals_the_original(silero: SileroNetwork, assets_dir: Path) -> None:
    original = torch.jit.load(str(WEIGHTS))
    for name in ("question.wav", "reading.wav"):
        frames = frames_of(spoken(assets_dir / name))
        original.reset_states()
        expected = [float(original(torch.from_numpy(frame)[None], RATE)) for frame in frames]
        assert np.abs(judge(silero, frames) - expected).max() < 1e-5


def test_listeners_in_one_call_are_judged_as_alone(silero: SileroNetwork, assets_dir: Path) -> None:
    reading = frames_of(spoken(assets_dir / "reading.wav"))
    starts = [0, 7, 50, 111]
    states = [silero.begin() for _ in starts]
    together = []
    for i in range(40):
        speech, states = silero.push(np.stack([reading[start + i] for start in starts]), states)
        together.append(speech)
    alone = [judge(silero, reading[start : start + 40]) for start in starts]
    assert np.abs(np.stack(together, axis=1) - np.stack(alone)).max() < 1e-5


@pytest.mark.parametrize("name", ["silero", "energy"])
def test_speech_is_heard_and_silence_is_not(name: str, assets_dir: Path) -> None:
    network = load_network(name)
    assert judge(network, frames_of(spoken(assets_dir / "reading.wav"))).mean() > 0.5
    assert judge(network, np.zeros((60, FRAME_LEN), dtype=np.float32)).max() < 0.35


@pytest.mark.parametrize("level_db", [-60.0, -45.0, -30.0, -20.0])
def test_noise_is_no_speech(silero: SileroNetwork, level_db: float) -> None:
    generator = np.random.default_rng(3)
    noise = (10 ** (level_db / 20) * generator.standard_normal((150, FRAME_LEN))).astype(np.float32)
    assert judge(silero, noise).max() < 0.5
    tone = 10 ** (level_db / 20) * np.sin(2 * np.pi * 440 / RATE * np.arange(150 * FRAME_LEN))
    assert judge(silero, frames_of(tone.astype(np.float32))).mean() < 0.5


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jit"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(ValueError, match="install silero-vad 6"):
        SileroNetwork.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no TorchScript file"):
        SileroNetwork.load(path)


def test_without_the_weights_the_level_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("innervoice.server.vad.choose.find_weights", lambda: None)
    assert isinstance(load_network("silero"), EnergyNetwork)
    assert "pip install 'innervoice[server]'" in caplog.text
    with pytest.raises(ValueError, match="use silero or energy"):
        load_network("ears")


class ScriptedNetwork:
    """Takes the mean of a frame for its probability; its state counts the frames of a listener."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()

    def begin(self) -> int:
        return 0

    def push(self, frames: Samples, states: Sequence[Any]) -> tuple[Samples, list[Any]]:
        self.sizes.append(len(frames))
        self.threads.add(threading.current_thread().name)
        return frames.mean(axis=1), [state + 1 for state in states]


def constant(value: float, num_frames: float) -> Pcm16:
    return np.full(int(num_frames * FRAME_LEN), value * 32768, dtype=np.int16)


async def collect(
    listener: SpeechListener, drive: Callable[[Any], Any], rate: int = RATE
) -> list[VoicedFrame]:
    """What a lane reports of the sound that `drive` pushes."""
    found: list[VoicedFrame] = []
    lane = listener.open(rate, found.extend)
    await drive(lane)
    await lane.drain()
    lane.close()
    return found


def test_lanes_report_frames_in_order_whatever_the_pushes() -> None:
    network = ScriptedNetwork()
    listener = SpeechListener(network)

    async def main() -> list[list[VoicedFrame]]:
        async def drive(lane: Any, size: int) -> None:
            sound = np.concatenate([constant(0.1 * (i % 9), 1) for i in range(20)])
            for start in range(0, len(sound), size):
                lane.push(sound[start : start + size])
                await asyncio.sleep(0)

        sizes = (1, 160, 512, 700, 9000)
        return await asyncio.gather(*(collect(listener, lambda lane, s=s: drive(lane, s)) for s in sizes))

    for found in asyncio.run(main()):
        assert [frame.start_ms for frame in found] == [FRAME_MS * i for i in range(20)]
        assert all(frame.end_ms - frame.start_ms == FRAME_MS for frame in found)
        assert [frame.probability for frame in found] == pytest.approx(
            [0.1 * (i % 9) for i in range(20)], abs=1e-3
        )
    listener.close()
    assert network.threads == {"innervoice-vad"}
    assert max(network.sizes) > 1


def test_soft_frames_are_not_judged() -> None:
    network = ScriptedNetwork()
    listener = SpeechListener(network)

    async def drive(lane: Any) -> None:
        lane.push(np.concatenate([constant(0.0, 10), constant(0.0009, 5), constant(0.5, 3)]))

    found = asyncio.run(collect(listener, drive))
    listener.close()
    assert [frame.probability for frame in found[:15]] == [0.0] * 15
    assert [frame.level_db for frame in found[15:]] == pytest.approx([-6.02] * 3, abs=0.1)
    assert sum(network.sizes) == 3


def test_a_reset_forgets_and_keeps_the_clock() -> None:
    listener = SpeechListener(ScriptedNetwork())

    async def main() -> list[VoicedFrame]:
        found: list[VoicedFrame] = []
        lane = listener.open(RATE, found.extend, start_ms=1000.0)
        lane.push(constant(0.9, 3.5))
        lane.reset()
        lane.push(constant(0.2, 2))
        await lane.drain()
        assert lane.state <= 2, "the network begins anew"
        lane.close()
        lane.push(constant(0.2, 2))
        await asyncio.sleep(0.05)
        return found

    found = asyncio.run(main())
    listener.close()
    assert [frame.start_ms for frame in found] == [1000 + 3.5 * FRAME_MS, 1000 + 4.5 * FRAME_MS]
    assert [frame.probability for frame in found] == pytest.approx([0.2, 0.2], abs=1e-3)


def test_a_network_that_fails_hears_nothing_and_the_thread_lives(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(ScriptedNetwork):
        def push(self, frames: Samples, states: Sequence[Any]) -> tuple[Samples, list[Any]]:
            if len(self.sizes) < 2:
                self.sizes.append(0)
                raise RuntimeError("no more memory")
            return super().push(frames, states)

    listener = SpeechListener(Failing())

    async def drive(lane: Any) -> None:
        lane.push(constant(0.5, 4))

    found = asyncio.run(collect(listener, drive))
    listener.close()
    assert [frame.probability for frame in found] == pytest.approx([0, 0, 0.5, 0.5], abs=1e-3)
    assert "no more memory" in caplog.text


@pytest.mark.parametrize("rate", [24000, 8000])
def test_a_recording_is_a_turn(silero: SileroNetwork, assets_dir: Path, rate: int) -> None:
    question = spoken(assets_dir / "question.wav", rate)
    sound = np.concatenate([np.zeros(rate, np.float32), question, np.zeros(rate, np.float32)])
    pcm = (sound * 32767).astype(np.int16)
    listener = SpeechListener(silero)

    async def drive(lane: Any) -> None:
        for start in range(0, len(pcm), rate // 50):
            lane.push(pcm[start : start + rate // 50])

    frames = asyncio.run(collect(listener, drive, rate))
    listener.close()
    detector = TurnDetector(TurnDetection(silence_duration_ms=600))
    started, stopped = [one for frame in frames if (one := detector.push(frame)) is not None]
    assert isinstance(started, SpeechStarted)
    assert isinstance(stopped, SpeechStopped)
    length_ms = 1e3 * len(question) / rate
    assert 700 <= started.audio_start_ms <= 1100
    assert 1000 + 0.6 * length_ms <= stopped.speech_end_ms <= 1000 + length_ms + 150
