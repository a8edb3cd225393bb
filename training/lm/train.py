"""The stage `lm`: the language model learns to answer, on dialogues that are drawn anew for every step."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from training.lm.examples import Dialogues, Example, corrupted, read_speech
from training.lm.model import LanguageModel
from training.lm.vocabulary import FIRST_CODE, NUM_TEXT
from training.loop import TrainingRun, load_weights

STAGE = "lm"
NUM_STEPS = 3600
BATCH = 16
PEAK_LR = 3e-3
WARM_UP = 100
WRONG_CODES = 0.1  # share of a reply's codes that the model sees wrong
TEXT_WEIGHT = 3.0  # of text, of what ends it, and of the first token of a segment


def learning_rate(step: int) -> float:
    """Rise quickly, then fall in a straight line to a thirtieth."""
    return PEAK_LR * min(1.0, (step + 1) / WARM_UP) * max(0.03, 1 - step / NUM_STEPS)


def weight_of(example: Example) -> list[float]:
    """Return what each id weighs in the loss: nothing in questions, more for text and where the kind
    changes.
    """
    ids, found = example.ids, []
    for place, said in enumerate(example.is_said):
        changes = place > 0 and (ids[place] >= FIRST_CODE) != (ids[place - 1] >= FIRST_CODE)
        heavy = ids[place] < FIRST_CODE or changes
        found.append((TEXT_WEIGHT if heavy else 1.0) if said else 0.0)
    return found


def padded(rows: list[list[int]]) -> torch.Tensor:
    """Return rows of ids, filled up with 0. [B, T]"""
    length = max(map(len, rows))
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def draw(dialogues: Dialogues, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the model sees, what it should say next, and the weights. [B, T] each"""
    examples = [dialogues.draw(rng) for _ in range(BATCH)]
    seen = padded([corrupted(entry.ids, entry.is_said, WRONG_CODES, rng) for entry in examples])
    ids = padded([entry.ids for entry in examples])
    length = ids.shape[1]
    weights = [weight_of(entry) for entry in examples]
    weight = torch.tensor([row + [0.0] * (length - len(row)) for row in weights])
    return seen[:, :-1], ids[:, 1:], weight[:, 1:]


def losses(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the weighted loss, and the plain ones of speech and text, in nats."""
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    said = weight > 0
    speech, text = said & (target >= FIRST_CODE), said & (target < NUM_TEXT)
    return {
        "weighted": (each * weight).sum() / weight.sum(),
        "speech": each[speech].mean(),
        "text": each[text].mean(),
    }


def train() -> None:
    """Train the language model on what has been said so far."""
    torch.manual_seed(0)
    model = LanguageModel()
    parameters = list(model.parameters())
    run = TrainingRun(
        STAGE,
        model,
        torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05),
        NUM_STEPS,
        learning_rate,
        averaging=0.99,
    )
    dialogues = Dialogues(read_speech())
    model.train()
    for step in run.steps():
        seen, target, weight = draw(dialogues, random.Random(step))
        found = losses(model(seen), target, weight)
        parts = {name: value.item() for name, value in found.items()}
        run.learn(found["weighted"], parameters, 1.0, **parts)


def load() -> LanguageModel:
    """Return the trained model."""
    model = LanguageModel()
    model.load_state_dict(load_weights(STAGE))
    return model.eval()
