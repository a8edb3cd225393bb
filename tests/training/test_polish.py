"""The vocoder's second stage: mels of the flow lie on the frames they were made from, each part of a step learns its own."""

from __future__ import annotations

import torch
from training.data import TargetSpeech
from training.features.frames import first_frame
from training.features.mel import HOP, NUM_MELS
from training.flow.model import Flow
from training.hift import polish
from training.hift.discriminator import deceit_loss, feature_loss, verdict_loss
from training.hift.train import STAGE
from training.loop import TrainingRun, load_weights

COUNTS = (7, 12, 5)


class NamesItsCodes(Flow):
    """A flow whose mel is the code of each frame."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def mel(self, codes: torch.Tensor) -> torch.Tensor:
        frames = 441 * len(codes) // 64
        of_frame = torch.tensor([min(64 * frame // 441, len(codes) - 1) for frame in range(frames)])
        return codes[of_frame].float().expand(NUM_MELS, frames)


def speech() -> TargetSpeech:
    """Three utterances of noise; code i is i."""
    lengths = [first_frame(count) for count in COUNTS]
    offsets = [0, lengths[0], lengths[0] + lengths[1]]
    starts = [
        begin + first_frame(i) for begin, count in zip(offsets, COUNTS, strict=True) for i in range(count)
    ]
    frames = sum(lengths)
    return TargetSpeech(
        mel=torch.full((NUM_MELS, frames), -1.0),
        f0=torch.full((frames,), 200.0),
        audio=(torch.randn(frames * HOP) * 3000).to(torch.int16),
        codes=torch.arange(sum(COUNTS)),
        frame_of=torch.tensor(starts),
        num_codes=torch.tensor(COUNTS),
    )


def test_mels_of_the_flow_lie_where_their_codes_are() -> None:
    true = speech()
    made = polish.flow_speech(NamesItsCodes(), true)
    assert (true.mel == -1).all()
    for code, frame in zip(true.codes.tolist(), true.frame_of.tolist(), strict=True):
        # A token's first frame is rounded to the nearest; the one after it is the token's own for certain.
        assert (made.mel[:, frame + 1] == code).all(), code
    assert (made.mel == -1).float().mean() < 0.03  # at most a frame at the end of an utterance


def test_judges_tell_noise_from_a_tone_and_gradients_keep_apart() -> None:
    torch.manual_seed(0)
    judges = polish.Discriminators()
    optimizer = torch.optim.AdamW(judges.parameters(), 2e-3)
    time = torch.arange(8192) / 22050
    real, fake = torch.sin(2 * torch.pi * 220 * time)[None], 0.3 * torch.randn(1, 8192)
    first = verdict_loss(judges(real), judges(fake)).item()
    for _ in range(25):
        optimizer.zero_grad()
        verdict_loss(judges(real), judges(fake)).backward()
        optimizer.step()
    assert verdict_loss(judges(real), judges(fake)).item() < 0.3 * first
    assert deceit_loss(judges(fake)) > 2 * deceit_loss(judges(real))
    assert feature_loss(judges(real), judges(real)) == 0 < feature_loss(judges(real), judges(fake))

    fake.requires_grad_()
    polish.judges_off(judges)
    optimizer.zero_grad()
    deceit_loss(judges(fake)).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judges.parameters())


def test_a_step_moves_vocoder_and_judges(monkeypatch) -> None:
    torch.manual_seed(0)
    pair = polish.Pair()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    TrainingRun(STAGE, pair.hift, torch.optim.AdamW(pair.hift.parameters()), 0, polish.learning_rate).save()
    monkeypatch.setattr(polish, "NUM_STEPS", 1)
    monkeypatch.setattr(polish, "training_speech", lambda with_codes: speech())
    monkeypatch.setattr(polish, "load_flow", NamesItsCodes)
    polish.train()
    after = load_weights(polish.POLISH_STAGE)
    start = {f"hift.{name}": value for name, value in load_weights(STAGE).items()}
    assert any(not torch.equal(after[name], value) for name, value in start.items())
    assert set(polish.weights()) == set(load_weights(STAGE))
    assert set(after) == set(before)
