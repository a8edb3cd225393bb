"""The stages `flow-encoder` and `flow`: the token-rate half alone, which is 20 times cheaper, then all as a
regression.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from training.data import TargetSpeech, training_speech
from training.features.codebook import embedding
from training.features.frames import num_frames
from training.features.tokens import load_codebook
from training.flow.model import Flow
from training.loop import TrainingRun, load_weights

ENCODER_STAGE = "flow-encoder"
STAGE = "flow"
ENCODER_STEPS = 3000
STEPS = 8000
ENCODER_BATCH, ENCODER_CODES = 24, 40
BATCH = 8
# Crops as short as a first chunk, so that group norms over short windows are no surprise when streaming.
CROP_CODES = (10, 18, 26, 32, 32, 36, 48)
MU_WEIGHT = 0.3


def falling(peak: float, warm_up: int, num_steps: int) -> Callable[[int], float]:
    """Return a learning rate that rises quickly and then falls in a straight line to a fiftieth."""
    return lambda step: peak * min(1.0, (step + 1) / warm_up) * max(0.02, 1 - step / num_steps)


def crops(speech: TargetSpeech, batch: int, num_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random runs of codes [B, N] and their normalised mel [B, 80, F]."""
    starts = torch.randint(len(speech.codes) - num_codes - 2, (batch,))
    codes = speech.codes[starts[:, None] + torch.arange(num_codes)]
    length = num_frames(num_codes)
    mel = [speech.mel[:, place : place + length] for place in speech.frame_of[starts].tolist()]
    return codes, torch.stack(mel).float()


def new_flow() -> Flow:
    """Return a flow whose embedding of codes is the codebook's shape: a random one over-fits."""
    torch.manual_seed(0)
    model = Flow()
    with torch.no_grad():
        model.input_embedding.weight.copy_(embedding(load_codebook()))
    return model


def train_encoder() -> None:
    """Train mu alone."""
    model = new_flow()
    parameters = model.token_rate_parameters()
    run = TrainingRun(
        ENCODER_STAGE,
        model,
        torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01),
        ENCODER_STEPS,
        falling(2.5e-3, 60, ENCODER_STEPS),
        averaging=0.98,
    )
    speech = training_speech(with_codes=True)
    for _ in run.steps():
        codes, mel = crops(speech, ENCODER_BATCH, ENCODER_CODES)
        loss = (model.mu(codes) - mel).abs().mean()
        run.learn(loss, parameters, 1.0, mel=loss.item())


def train() -> None:
    """Train the whole flow as a regression, from the encoder of the first stage."""
    model = new_flow()
    model.load_state_dict(load_weights(ENCODER_STAGE))
    parameters = list(model.parameters())
    run = TrainingRun(
        STAGE,
        model,
        torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01),
        STEPS,
        falling(1.5e-3, 40, STEPS),
        averaging=0.99,
    )
    speech = training_speech(with_codes=True)
    for _ in run.steps():
        num_codes = CROP_CODES[int(torch.randint(len(CROP_CODES), ()))]
        codes, mel = crops(speech, BATCH, num_codes)
        mu = model.mu(codes)
        made = model.regress(mu, torch.rand(len(mu)))
        error = (made - mel).abs().mean()
        mu_error = (mu - mel).abs().mean()
        run.learn(error + MU_WEIGHT * mu_error, parameters, 1.0, mel=error.item(), mu=mu_error.item())


def load(stage: str = STAGE) -> Flow:
    """Return the trained flow of a stage."""
    model = Flow()
    model.load_state_dict(load_weights(stage))
    return model.eval()
