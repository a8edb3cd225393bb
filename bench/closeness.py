"""How close `steady` comes to one offline call, on the tiny decoder with its tokens made to matter, noise by
place on both sides.

The yardstick is what independent chunks give, without look-back. Distances are of log spectra: of the mel
frames, and of the sound. The vocoder sums its pitch to a phase, in which tiny differences walk at random, and
random weights turn a moved phase into another spectrum: so the sound is compared over one source on all
sides. `ratio` is the distance over the yardstick's: a goal of 0.6 at most, and more for a reply of wrong
codes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bench.record import Record, device_name, parser, report
from torch import Tensor
from torch.nn import functional as F

from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, next_border
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.flow import NOISE_SEED
from innervoice.codec.layers import linear
from innervoice_kernels.speech_codec.noise import frame_noise

TINY = (
    Path(__file__).resolve().parent.parent
    / "engine"
    / "innervoice"
    / "assets"
    / "tiny"
    / "glm-4-voice-decoder"
)
CLOCK, SETTINGS = FrameClock.of(12.5), SteadySettings()
NEAR_FRAMES = 16
LIMIT = 0.6


class Reply(NamedTuple):
    """One reply: frames [1, 80, T] offline, steady, of wrong codes (steady), of independent chunks; steady's
    sounds.
    """

    borders: list[int]
    offline: Tensor
    steady: Tensor
    wrong: Tensor
    independent: Tensor
    sounds: list[np.ndarray]


def load(directory: Path = TINY) -> SpeechDecoder:
    """The tiny decoder, the last layer of its length regulator scaled by 8."""
    made = SpeechDecoder.from_pretrained(directory)
    with torch.inference_mode():
        made._flow.regulator._out.weight.mul_(8)
    return made


def random_codes(count: int, seed: int) -> list[int]:
    """Random codes of the tiny decoder's 64."""
    rng = random.Random(seed)
    return [rng.randrange(64) for _ in range(count)]


def make_reply(decoder: SpeechDecoder, total: int, settings: SteadySettings = SETTINGS) -> Reply:
    """Random codes, decoded in all four ways."""
    codes, borders = random_codes(total, 3), [0]
    while borders[-1] < total:
        borders.append(min(total, next_border(borders[-1], settings)))
    ours, sounds = steady_mel(decoder, codes, settings)
    wrong, _ = steady_mel(decoder, random_codes(total, 4), settings)
    offline = decoder.mel(codes, noise="frame")
    return Reply(borders, offline, ours, wrong, independent_mel(decoder, codes, borders), sounds)


def steady_mel(
    decoder: SpeechDecoder, codes: Sequence[int], settings: SteadySettings
) -> tuple[Tensor, list[np.ndarray]]:
    """The vocoder's input frames and the sounds that it makes of them."""
    voice, frames = decoder.steady(settings, num_slots=1), []
    networks = voice._networks
    vocode = networks.vocode

    def note(fed: list, last: bool) -> list:  # type: ignore[type-arg]
        late = last * networks._vocoder.flush_frames
        frames.extend(part.frames[:, : part.n - late] for part in fed)
        return vocode(fed, last)

    networks.vocode = note  # type: ignore[method-assign]
    voice.open("reply", seed=NOISE_SEED)
    voice.push("reply", codes)
    sounds = voice.step()
    voice.finish("reply")
    sounds += voice.step()
    voice.close("reply")
    return torch.cat(frames, -1)[None], [sound.samples for sound in sounds]


@torch.inference_mode()
def independent_mel(decoder: SpeechDecoder, codes: list[int], borders: list[int]) -> Tensor:
    flow, parts = decoder._flow, []
    for begin, end in pairwise(borders):
        states = linear(
            flow.encoder(F.embedding(torch.tensor(codes[begin:end]), flow.embedding)[None]), flow.project
        )
        frames = torch.arange(CLOCK.frames(begin), CLOCK.frames(end))
        tokens = (CLOCK.tokens(frames) - begin).clamp(min=0)
        mu = flow.regulator.smooth(states[:, tokens].transpose(1, 2))
        noise = frame_noise(torch.tensor([NOISE_SEED]), frames[None], 80)
        parts.append(flow.solve(noise, mu, flow.speaker_vector(None), torch.zeros_like(mu)))
    return torch.cat(parts, -1)


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
    """The log-spectrum [bins, T] of the sound of these frames, over the source of the offline ones."""
    samples = decoder._hift.render(mel, decoder._hift.steady_source(offline, NOISE_SEED))
    spectrum = torch.stft(samples, 1024, 256, window=torch.hann_window(1024), return_complex=True)[0, :, :-1]
    return 20 * spectrum.abs().clamp(min=1e-5).log10()


def ratios(ours: Tensor, yardstick: Tensor, near: Tensor) -> tuple[float, float]:
    """Mean distance over the yardstick's, overall and near borders."""
    return float(ours.mean() / yardstick.mean()), float(ours[near].mean() / yardstick[near].mean())


def distances(
    decoder: SpeechDecoder, reply: Reply
) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Of frames and of sound: ratios of steady, overall and near borders, and those of wrong codes."""
    near, made = near_borders(reply), {}
    parts = {
        "frames": (reply.offline, reply.steady, reply.wrong, reply.independent),
        "sound": tuple(
            heard(decoder, mel, reply.offline)
            for mel in (reply.offline, reply.steady, reply.wrong, reply.independent)
        ),
    }
    for name, (offline, steady, wrong, independent) in parts.items():
        yardstick = distance(independent, offline)
        made[name] = tuple(ratios(distance(one, offline), yardstick, near) for one in (steady, wrong))
    return made  # type: ignore[return-value]


def border_steps(reply: Reply, settings: SteadySettings = SETTINGS) -> tuple[float, float]:
    """The largest step of the sound where chunks or mixes begin, and the 99.9th percentile of the others."""
    steps = np.abs(np.diff(np.concatenate(reply.sounds)))
    joints = np.cumsum([len(part) for part in reply.sounds])[:-1]
    mixed = [
        256 * (CLOCK.frames(border) - settings.hold_back) + shift
        for border in reply.borders[1:-1]
        for shift in (0, 256)
    ]
    places = np.array([*joints, *mixed]) - 1
    return float(steps[places].max()), float(np.quantile(np.delete(steps, places), 0.999))


def records(quick: bool) -> Iterator[Record]:
    """Replies of 10 and 30 s at the look-back that is the default, and at a shorter one."""
    decoder = load()
    common = {
        "device": device_name("cpu"),
        "dtype": "float32",
        "peer_name": "independent chunks",
        "unit": "of the yardstick",
    }
    for look_back in (SETTINGS.look_back, 200):
        settings = replace(SETTINGS, look_back=look_back)
        for total in (62,) if quick else (125, 375):
            reply = make_reply(decoder, total, settings)
            shape = f"{total / 12.5:.0f} s, look-back of {look_back} frames"
            for name, ((ours, near), (wrong, wrong_near)) in distances(decoder, reply).items():
                details = {
                    "near borders": near,
                    "wrong codes": wrong,
                    "wrong codes, near borders": wrong_near,
                    "limit": LIMIT,
                }
                yield Record(
                    f"distance to offline, {name}",
                    shape,
                    ours=ours,
                    peer=1.0,
                    ratio=ours,
                    details=details,
                    **common,
                )
            most, usual = border_steps(reply, settings)
            yield Record("largest step at a border", shape, ours=most, peer=usual, ratio=usual / most,
                         **common | {"unit": "of full scale", "peer_name": "99.9th percentile inside"})  # fmt: skip


def main() -> None:
    """Run as the contract of bench/record.py has it; on a CPU alone."""
    arguments = parser(__doc__).parse_args()
    report(records(arguments.quick), arguments.json)


if __name__ == "__main__":
    main()
