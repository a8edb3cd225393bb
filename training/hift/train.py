"""The stage `hift`: the vocoder learns spectra at four resolutions, the mel, and the pitch."""

from __future__ import annotations

import torch

from training.data import TargetSpeech, training_speech
from training.features.mel import HOP, hann, log_mel
from training.hift.model import Hift
from training.loop import TrainingRun, load_weights

STAGE = "hift"
NUM_STEPS = 4000
BATCH = 8
SEGMENT = 32  # mel frames: 0.37 s
PEAK_LR = 2e-3
WARM_UP = 30
HALF_LIFE = 1300  # steps
RESOLUTIONS = ((512, 128), (1024, 256), (256, 64), (128, 32))  # transform, hop
MIN_POWER = 1e-5  # quieter segments teach nothing


def learning_rate(step: int) -> float:
    """Rise quickly, then halve again and again."""
    return PEAK_LR * min(1.0, (step + 1) / WARM_UP) * 0.5 ** (step / HALF_LIFE)


def magnitude(audio: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    """Return the magnitudes of a spectrum. [B, n] -> [B, size / 2 + 1, frames]"""
    spectrum = torch.stft(audio, size, hop, size, hann(size), return_complex=True)
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-7)


def spectral_loss(made: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spectral convergence and the distance of the log magnitudes, means over the resolutions.

    Source: Yamamoto et al., "Parallel WaveGAN", 2020.
    """
    convergence, distance = [], []
    for size, hop in RESOLUTIONS:
        a, b = magnitude(made, size, hop), magnitude(real, size, hop)
        convergence.append((a - b).norm() / b.norm())
        distance.append((a.log() - b.log()).abs().mean())
    return torch.stack(convergence).mean(), torch.stack(distance).mean()


def draw(speech: TargetSpeech) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random segments: normalised mel [B, 80, F], pitch [B, F], samples [B, n]."""
    found = []
    while len(found) < BATCH:
        start = int(torch.randint(speech.num_frames - SEGMENT, ()))
        audio = speech.audio[start * HOP : (start + SEGMENT) * HOP].float() / 32768
        if audio.square().mean() > MIN_POWER:
            part = slice(start, start + SEGMENT)
            found.append((speech.mel[:, part].float(), speech.f0[part], audio))
    mel, f0, audio = (torch.stack(column) for column in zip(*found, strict=True))
    return mel, f0, audio


def train() -> None:
    """Train the vocoder on what the target voice has said so far."""
    torch.manual_seed(0)
    model = Hift()
    run = TrainingRun(
        STAGE,
        model,
        torch.optim.AdamW(model.parameters(), betas=(0.8, 0.98), weight_decay=0.0),
        NUM_STEPS,
        learning_rate,
        averaging=0.99,
    )
    speech = training_speech()
    parameters = list(model.parameters())
    for _ in run.steps():
        mel, f0, audio = draw(speech)
        made = model(mel, model.harmonics(f0))
        convergence, distance = spectral_loss(made, audio)
        mel_distance = (log_mel(made) - log_mel(audio)).abs().mean()
        pitch = (model.f0_predictor(mel) - f0).abs().mean()
        loss = convergence + distance + 2 * mel_distance + pitch / 20
        run.learn(
            loss,
            parameters,
            5.0,
            convergence=convergence.item(),
            distance=distance.item(),
            mel=mel_distance.item(),
            pitch=pitch.item(),
        )


def load() -> Hift:
    """Return the trained vocoder."""
    model = Hift()
    model.load_state_dict(load_weights(STAGE))
    return model.eval()
