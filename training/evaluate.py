"""Word error of the held-out sentences after each stage, by both judges; figures go to the log of the stage."""

from __future__ import annotations

import numpy as np
import torch

from training.data import HeldOutUtterance, held_out_speech, mel_stats
from training.features.mel import SAMPLE_RATE, log_mel
from training.flow.model import Flow
from training.flow.train import ENCODER_STAGE
from training.flow.train import load as load_flow
from training.hift.model import Hift
from training.hift.polish import load as load_polished
from training.hift.train import STAGE as HIFT_STAGE
from training.hift.train import load as load_vocoder
from training.judge import word_error_rate
from training.lm.examples import read_speech
from training.lm.score import Share, is_not_understood, names_feeling, names_situation, outside, situation_of
from training.lm.speak import answer
from training.lm.train import STAGE as LM_STAGE
from training.lm.train import load as load_language_model
from training.second_judge import second_word_error_rate
from training.workdir import Log

KINDS = ("reply-test", "general-test")


def judged(audio: list[np.ndarray], texts: list[str]) -> list[float]:
    """Return the word error rates of audio that should say the texts, by the first judge and by the
    second.
    """
    rates = (word_error_rate(audio, texts, SAMPLE_RATE), second_word_error_rate(audio, texts, SAMPLE_RATE))
    return [round(rate, 4) for rate in rates]


def texts_of(speech: list[HeldOutUtterance]) -> list[str]:
    """Return what utterances say."""
    return [entry.text for entry in speech]


def evaluate_vocoder() -> None:
    """Log the word error of the original recordings and of their mel through the vocoder."""
    log = Log(HIFT_STAGE)
    model = load_vocoder()
    mean, std = mel_stats()
    for kind in KINDS:
        speech = held_out_speech(kind)
        made = [model.speak(entry.mel).numpy() for entry in speech]
        distances = [
            float((log_mel(torch.from_numpy(audio)[None])[0] - (entry.mel * std + mean)).abs().mean())
            for audio, entry in zip(made, speech, strict=True)
        ]
        original = [entry.audio.numpy().astype(np.float32) / 32768 for entry in speech]
        log.write(
            event="evaluation",
            kind=kind,
            utterances=len(speech),
            mel=round(float(np.mean(distances)), 4),
            wer_original=judged(original, texts_of(speech)),
            wer=judged(made, texts_of(speech)),
        )


def evaluate_flow(stage: str, vocoder: Hift | None = None, log_of: str | None = None) -> None:
    """Log mel distance and word error of the true codes through a stage's flow and a vocoder: that of the stage
    `hift` in the stage's log unless others are given.
    """
    log = Log(log_of or stage)
    model, vocoder = load_flow(stage), vocoder or load_vocoder()
    for kind in KINDS:
        speech = held_out_speech(kind)
        mels = [flow_mel(model, stage, entry.codes) for entry in speech]
        distances = [
            float((made - entry.mel[:, : made.shape[1]]).abs().mean())
            for made, entry in zip(mels, speech, strict=True)
        ]
        log.write(
            event="evaluation",
            kind=kind,
            utterances=len(speech),
            mel=round(float(np.mean(distances)), 4),
            wer=judged([vocoder.speak(mel).numpy() for mel in mels], texts_of(speech)),
        )


@torch.no_grad()
def flow_mel(model: Flow, stage: str, codes: torch.Tensor) -> torch.Tensor:
    """Return the normalised mel of codes: the encoder's guess after the first stage, the estimator's
    after the second.
    """
    return model.mu(codes[None])[0] if stage == ENCODER_STAGE else model.mel(codes)


def evaluate_language_model(num_judged: int = 64) -> None:
    """Log, for the held-out questions with and without reflection, feelings, situations, what is not
    understood, and
    the word error of the replies' speech against their own text.
    """
    log = Log(LM_STAGE)
    model, flow, vocoder = load_language_model(), load_flow(), load_polished()
    questions = read_speech(held_out=True).users
    for reflect in (True, False):
        shares = {name: Share() for name in ("feeling", "situation", "not_understood")}
        audio: list[np.ndarray] = []
        texts: list[str] = []
        for (question, _), recordings in questions.items():
            said = answer(model, recordings[0], reflect)
            situation = situation_of().get(question)
            if situation is not None:
                shares["feeling"].add(names_feeling(said, situation))
                shares["situation"].add(names_situation(said, situation))
            elif question in outside():
                shares["not_understood"].add(is_not_understood(said))
            if len(audio) < num_judged and said.codes:
                audio.append(vocoder.speak(flow.mel(torch.tensor(said.codes))).numpy())
                texts.append(said.text)
        log.write(
            event="evaluation",
            reflect=reflect,
            questions=len(questions),
            wer=judged(audio, texts),
            **{name: share.value for name, share in shares.items()},
        )
