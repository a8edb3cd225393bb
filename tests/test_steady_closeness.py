"""How close `steady` comes to one offline call, on the tiny decoder with its tokens made to matter, noise by place on both sides.

The yardstick is what independent chunks give, without look-back. Distances are of log spectra: of the mel frames, and of the
sound. The vocoder sums its pitch to a phase, in which tiny differences walk at random, and random weights turn a moved phase into
another spectrum: so the sound is compared over one source on all sides.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from small_codec import random_codes, speak
from torch import Tensor
from torch.nn import functional as F

from innervoice.codec.chunks import Clock, SteadySettings, next_border
from innervoice.codec.decoder import SpeechDecoder
from innervoice.codec.flow import NOISE_SEED
from innervoice.codec.layers import linear
from innervoice_kernels.noise import frame_noise

CLOCK, SETTINGS = Clock.of(12.5), SteadySettings()
NEAR_FRAMES = 16
LIMIT = 0.6


class Reply(NamedTuple):
    """One reply: frames [1, 80, T] offline, steady, of wrong codes (steady), of independent chunks; steady's sounds."""

    borders: list[int]
    offline: Tensor
    steady: Tensor
    wrong: Tensor
    independent: Tensor
    sounds: list[np.ndarray]


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> SpeechDecoder:
    made = SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder")
    with torch.inference_mode():
        made._flow.regulator._out.weight.mul_(8)
    return made


def steady_mel(decoder: SpeechDecoder, codes: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[np.ndarray]]:
    """The frames that the vocoder is given, and what it makes of them."""
    voice, frames = decoder.steady(num_slots=1), []
    vocode = voice._vocode

    def note(fed: list, last: bool) -> list:  # type: ignore[type-arg]
        frames.extend(mel[:, : n - last * voice._vocoder.flush_frames] for _, mel, n in fed)
        return vocode(fed, last)

    monkeypatch.setattr(voice, "_vocode", note)
    sounds = speak(voice, codes, [len(codes)])
    return torch.cat(frames, -1)[None], sounds


@torch.inference_mode()
def independent_mel(decoder: SpeechDecoder, codes: list[int], borders: list[int]) -> Tensor:
    flow, parts = decoder._flow, []
    for begin, end in pairwise(borders):
        states = linear(flow.encoder(F.embedding(torch.tensor(codes[begin:end]), flow.embedding)[None]), flow.project)
        frames = torch.arange(CLOCK.frames(begin), CLOCK.frames(end))
        tokens = (CLOCK.tokens(frames) - begin).clamp(min=0)
        mu = flow.regulator.smooth(states[:, tokens].transpose(1, 2))
        noise = frame_noise(torch.tensor([NOISE_SEED]), frames[None], 80)
        parts.append(flow.solve(noise, mu, flow.speaker_vector(None), torch.zeros_like(mu)))
    return torch.cat(parts, -1)


@pytest.fixture(scope="module", params=[125, pytest.param(375, marks=pytest.mark.slow)], ids=["10 s", "30 s"])
def reply(decoder: SpeechDecoder, request: pytest.FixtureRequest) -> Reply:
    total = request.param
    codes, others = random_codes(total, 3, 64), random_codes(total, 4, 64)
    borders = [0]
    while borders[-1] < total:
        borders.append(min(total, next_border(borders[-1], SETTINGS)))
    with pytest.MonkeyPatch.context() as patch:
        (ours, sounds), (wrong, _) = steady_mel(decoder, codes, patch), steady_mel(decoder, others, patch)
    return Reply(borders, decoder.mel(codes, noise="frame"), ours, wrong, independent_mel(decoder, codes, borders), sounds)


def near_borders(reply: Reply) -> Tensor:
    near = torch.zeros(reply.offline.shape[-1], dtype=torch.bool)
    for border in reply.borders[1:-1]:
        frame = CLOCK.frames(border)
        near[frame - NEAR_FRAMES : frame + NEAR_FRAMES] = True
    return near


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Root mean square over a frame's bins, [T]."""
    return (one - other).square().mean(-2).sqrt().flatten()


@torch.inference_mode()
def heard(decoder: SpeechDecoder, mel: Tensor, offline: Tensor) -> Tensor:
    """The log-spectrum of what these frames sound like over the source of the offline ones, [bins, T]."""
    samples = decoder._hift.render(mel, decoder._hift.steady_source(offline, NOISE_SEED))
    spectrum = torch.stft(samples, 1024, 256, window=torch.hann_window(1024), return_complex=True)[0, :, :-1]
    return 20 * spectrum.abs().clamp(min=1e-5).log10()


def ratios(ours: Tensor, yardstick: Tensor, near: Tensor) -> tuple[float, float]:
    """Mean distance over the yardstick's, overall and near borders."""
    return float(ours.mean() / yardstick.mean()), float(ours[near].mean() / yardstick[near].mean())


def test_frames_are_close_to_offline_and_wrong_codes_are_not(reply: Reply) -> None:
    near, yardstick = near_borders(reply), distance(reply.independent, reply.offline)
    assert max(ratios(distance(reply.steady, reply.offline), yardstick, near)) <= LIMIT
    assert min(ratios(distance(reply.wrong, reply.offline), yardstick, near)) > LIMIT


def test_sound_is_close_to_offline_and_wrong_codes_are_not(decoder: SpeechDecoder, reply: Reply) -> None:
    near, offline = near_borders(reply), heard(decoder, reply.offline, reply.offline)
    yardstick = distance(heard(decoder, reply.independent, reply.offline), offline)
    assert max(ratios(distance(heard(decoder, reply.steady, reply.offline), offline), yardstick, near)) <= LIMIT
    assert min(ratios(distance(heard(decoder, reply.wrong, reply.offline), offline), yardstick, near)) > LIMIT


def test_no_border_is_a_click(decoder: SpeechDecoder, reply: Reply) -> None:
    steps = np.abs(np.diff(np.concatenate(reply.sounds)))
    joints = np.cumsum([len(part) for part in reply.sounds])[:-1]
    mixed = [256 * (CLOCK.frames(border) - SETTINGS.hold_back) + shift for border in reply.borders[1:-1] for shift in (0, 256)]
    places = np.array([*joints, *mixed]) - 1
    inside = np.delete(steps, places)
    assert steps[places].max() <= np.quantile(inside, 0.999)


def test_the_mix_sums_to_one(decoder: SpeechDecoder) -> None:
    rise = decoder.steady(num_slots=1)._frames._rise
    assert torch.equal(rise + (1 - rise), torch.ones(SETTINGS.fade))
    assert torch.allclose(rise + rise.flip(0), torch.ones(SETTINGS.fade))
