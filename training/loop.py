"""What every training loop shares: steps that can be repeated, checkpoints that are whole, a moving
average, a log.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.workdir import Log, stage_dir, wait_while_paused, write_atomic

SAVE_EVERY_S = 120.0
LOG_EVERY = 50


class TrainingRun:
    """A model, its optimiser and how far they are; kept in `checkpoints/<stage>.pt` and read from there
    if it exists.

    The random numbers of a step depend on its number alone: a run that was stopped goes on as if it had not been.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        num_steps: int,
        lr: Callable[[int], float],
        averaging: float = 0.0,
    ) -> None:
        self.stage = stage
        self.model = model
        self.optimizer = optimizer
        self.num_steps = num_steps
        self.step = 0
        self.path = checkpoint_path(stage)
        self.log = Log(stage)
        self._lr = lr
        self._averaging = averaging
        self._average = {name: value.clone() for name, value in model.state_dict().items()}
        self._sums: dict[str, float] = defaultdict(float)
        self._num_summed = 0  # fewer than LOG_EVERY after a run went on in between
        self._saved = time.monotonic()
        if self.path.exists():
            self._resume()
        self.log.write(event="start", step=self.step, steps=num_steps, parameters=num_parameters(model))

    def _resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._average = state["average"]
        self.step = state["step"]

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps that are left; before each one the seed and the learning
        rate are set.
        """
        while self.step < self.num_steps:
            wait_while_paused()
            torch.manual_seed(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr(self.step)
            yield self.step
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self.save()
        self.save()

    def learn(
        self, loss: torch.Tensor, parameters: list[nn.Parameter], max_norm: float, **parts: float
    ) -> None:
        """Take one step down the gradient of a loss; the parts are averaged into the log."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._sums["gradient"] += float(nn.utils.clip_grad_norm_(parameters, max_norm))
        self.optimizer.step()
        self.step += 1
        self._follow()
        for name, value in parts.items():
            self._sums[name] += value
        self._num_summed += 1
        if self.step % LOG_EVERY == 0:
            means = {name: round(total / self._num_summed, 4) for name, total in self._sums.items()}
            self.log.write(event="steps", step=self.step, **means)
            self._sums.clear()
            self._num_summed = 0

    def _follow(self) -> None:
        """Move the average towards the model: quickly at first, then as slowly as asked for."""
        decay = min(self._averaging, self.step / (self.step + 9))
        for name, value in self.model.state_dict().items():
            self._average[name].lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "average": self._average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        write_atomic(self.path, lambda temporary: torch.save(state, temporary))
        self._saved = time.monotonic()


def checkpoint_path(stage: str) -> Path:
    """Return where a stage keeps its checkpoint."""
    return stage_dir("checkpoints") / f"{stage}.pt"


def load_weights(stage: str) -> dict[str, Any]:
    """Return the averaged weights of a stage's checkpoint.

    Raises:
        FileNotFoundError: The stage has not been run.
    """
    path = checkpoint_path(stage)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the stage {stage} first")
    return dict(torch.load(path, weights_only=True)["average"])


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
