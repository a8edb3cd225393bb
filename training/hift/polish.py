"""The stage `hift-polish`: the vocoder goes on, on mels that the flow makes, with discriminators.

A flow that is a regression gives smoother mels than speech has. The vocoder learns to speak clearly from those, as it
will have to.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from training.data import TargetSpeech, training_speech
from training.features.mel import log_mel
from training.flow.model import Flow
from training.flow.train import load as load_flow
from training.hift.discriminator import Discriminators, deceit_loss, feature_loss, verdict_loss
from training.hift.model import Hift
from training.hift.train import STAGE, draw, spectral_loss
from training.loop import TrainingRun, load_weights

POLISH_STAGE = "hift-polish"
NUM_STEPS = 1500
LR = 3e-4
TRUE_MELS = 0.25  # share of the steps on mels of speech, so that those are not forgotten
MEL_WEIGHT, DECEIT_WEIGHT, FEATURE_WEIGHT = 2.0, 0.2, 1.0


class Pair(nn.Module):
    """A vocoder and what judges it, which are trained in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.hift = Hift()
        self.judges = Discriminators()


@torch.no_grad()
def flow_speech(flow: Flow, speech: TargetSpeech) -> TargetSpeech:
    """Return speech with the mel that the flow makes of each utterance's codes."""
    mel = speech.mel.clone()
    firsts = speech.num_codes.cumsum(0) - speech.num_codes
    for first, codes in zip(firsts.tolist(), speech.codes.split(speech.num_codes.tolist()), strict=True):
        made, begin = flow.mel(codes), int(speech.frame_of[first])
        mel[:, begin : begin + made.shape[1]] = made.to(mel.dtype)
    return replace(speech, mel=mel)


def learning_rate(step: int) -> float:
    """Fall in a straight line to a twentieth."""
    return LR * max(0.05, 1 - step / NUM_STEPS)


def train() -> None:
    """Polish the vocoder of the stage `hift`."""
    torch.manual_seed(0)
    pair = Pair()
    pair.hift.load_state_dict(load_weights(STAGE))
    vocoder, judges = list(pair.hift.parameters()), list(pair.judges.parameters())
    optimizer = torch.optim.AdamW(vocoder + judges, betas=(0.8, 0.98), weight_decay=0.0)
    run = TrainingRun(POLISH_STAGE, pair, optimizer, NUM_STEPS, learning_rate, averaging=0.995)
    true = training_speech(with_codes=True)
    made_by_flow = flow_speech(load_flow(), true)
    for _ in run.steps():
        mel, f0, audio = draw(true if torch.rand(()) < TRUE_MELS else made_by_flow)
        made = pair.hift(mel, pair.hift.harmonics(f0))
        convergence, distance = spectral_loss(made, audio)
        mel_distance = (log_mel(made) - log_mel(audio)).abs().mean()
        pitch = (pair.hift.f0_predictor(mel) - f0).abs().mean()
        spectra = convergence + distance + MEL_WEIGHT * mel_distance + pitch / 20

        # The judges' part of the step: their loss reaches them alone, the vocoder's reaches the vocoder alone.
        real, detached = pair.judges(audio), pair.judges(made.detach())
        verdict = verdict_loss(real, detached)
        judges_off(pair.judges)
        heard = pair.judges(made)
        judges_off(pair.judges, False)
        deceit, features = deceit_loss(heard), feature_loss(real, heard)
        loss = spectra + DECEIT_WEIGHT * deceit + FEATURE_WEIGHT * features
        run.learn(
            loss + verdict,
            vocoder + judges,
            5.0,
            spectra=spectra.item(),
            mel=mel_distance.item(),
            pitch=pitch.item(),
            verdict=verdict.item(),
            deceit=deceit.item(),
            features=features.item(),
        )


def judges_off(judges: Discriminators, off: bool = True) -> None:
    """Keep gradients out of the judges' weights, or let them in again."""
    for parameter in judges.parameters():
        parameter.requires_grad_(not off)


def load() -> Hift:
    """Return the polished vocoder."""
    model = Hift()
    model.load_state_dict(weights())
    return model.eval()


def weights() -> dict[str, torch.Tensor]:
    """Return the tensors of the polished vocoder."""
    return {
        name.removeprefix("hift."): value
        for name, value in load_weights(POLISH_STAGE).items()
        if name.startswith("hift.")
    }
