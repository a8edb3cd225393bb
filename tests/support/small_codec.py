"""A flow and a vocoder of a few channels with random weights, a decoder of both, and replies pushed through
it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from innervoice.checkpoint.decoder_tensors import flow_shapes, hift_shapes
from innervoice.checkpoint.safetensors import DummyTensors
from innervoice.checkpoint.speech_decoder import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    HiftConfig,
)
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.steady import SteadyOutput
from innervoice.codec.layers import load_tensors

MEL = 8
SETTINGS = SteadySettings(look_back=32, hold_back=12, fade=8, encoder_blocks=2, steps=2)


FLOW = FlowConfig(
    16, MEL, 192, 12.5, 1, 0.7, EncoderConfig(8, 8, 2, 16, 2, 10), EstimatorConfig((8, 8), 4, 2, 1, 1)
)


def small_flow(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Flow:
    """Layers of 8 channels and 16 codes."""
    with torch.inference_mode():
        return Flow(FLOW, load_tensors(DummyTensors(std=0.4), flow_shapes(FLOW), dtype, device))


def small_decoder(noise: bool = True) -> SpeechDecoder:
    """The same with a vocoder of 8 channels."""
    hift = HiftConfig(MEL, 8, 2, f0_channels=8)
    with torch.inference_mode():
        vocoder = Hift(hift, load_tensors(DummyTensors(std=0.4), hift_shapes(hift), torch.float32))
    return SpeechDecoder(DecoderConfig(FLOW, hift), small_flow(), vocoder, vocoder_noise=noise)


def random_codes(count: int, seed: int, vocab: int = 16) -> list[int]:
    """Draw codes below `vocab`, the same for the same seed."""
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(count)]


def speak(
    output: SteadyOutput, codes: Sequence[int], sizes: Sequence[int], seed: int = 42
) -> list[np.ndarray]:
    """Push in pieces of these sizes, over and over, a step after each: the sounds, one a chunk."""
    chunks, start, turn = [], 0, 0
    output.open("spoken", seed=seed)
    while start < len(codes):
        size = sizes[turn % len(sizes)]
        output.push("spoken", codes[start : start + size])
        chunks += output.step(["spoken"])
        start, turn = start + size, turn + 1
    output.finish("spoken")
    chunks += output.step(["spoken"])
    output.close("spoken")
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return [chunk.samples for chunk in chunks]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max()) if theirs.size else 0.0
