"""Two loops of one real small model: the host draws in one, and the interpreted device step in the other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from scripted_core import FREE, PAGE, Received, World

from innervoice.model.device_step import DeviceStep, Pending
from innervoice.model.runner import ModelRunner
from innervoice.model.transformer import Transformer
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.backend import use


class Interpreted(DeviceStep):
    """A device step whose kernels are interpreted, whatever runs beside it."""

    def step(self, num_rows: int, count: int = 1, begun: Any = None) -> Pending:
        with use("triton"):
            return super().step(num_rows, count, begun)

    def warmup(self, weighted: Any = (False,)) -> float:
        with use("triton"):
            return super().warmup(weighted)


def make_world(
    model: Transformer,
    stepped: bool,
    num_pages: int = 64,
    max_rows: int = 4,
    kind: type[World] = World,
    **options: Any,
) -> World:
    """A world whose model is real."""
    options = {"max_model_len": 80} | options
    runner = ModelRunner(model, num_pages, PAGE, Tracer(), backend="plain")
    if stepped:
        with use("triton"):
            device_step = Interpreted(
                model, runner.kv, max_rows=max_rows, max_model_len=options["max_model_len"], num_caps=4
            )
        options["device"] = (device_step, FREE)
    return kind(num_pages, max_rows, runner=runner, **options)


def compare(worlds: tuple[World, World]) -> None:
    """Two worlds made the same events of all their replies, but for times and, where somebody listened, what was
    granted.
    """
    host, device = worlds
    assert host.received.keys() == device.received.keys()
    for name, received in host.received.items():
        assert sums(received) == sums(device.received[name]), name
        assert np.array_equal(received.samples, device.received[name].samples)
    for world in worlds:
        world.core.check_integrity()


def sums(received: Received) -> dict[str, Any]:
    """Everything of a reply that does not depend on time."""
    assert received.done is not None
    usage = {k: v for k, v in asdict(received.done.usage).items() if not k.endswith(("_ms", "_rtf"))}
    return {
        "ids": received.ids,
        "kinds": received.kinds,
        "usage": usage,
        "why": received.done.finish_reason,
        "error": received.done.error,
    }
