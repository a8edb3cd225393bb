"""How tokens, mel frames and samples lie on one another: 12.5 tokens and 22050 / 256 frames a second.

A token is 441 / 64 frames. Its frames start at `first_frame(token)`; an utterance is padded to whole tokens.
"""

from __future__ import annotations

from training.features.mel import HOP, SAMPLE_RATE, WHISPER_RATE

TOKEN_SAMPLES = 1280  # at 16 kHz: 80 ms


def num_tokens(num_samples: int, rate: int) -> int:
    """Return how many tokens a recording has: one for each 80 ms begun."""
    return -(-samples_at(num_samples, rate, WHISPER_RATE) // TOKEN_SAMPLES)


def samples_at(num_samples: int, rate: int, other_rate: int) -> int:
    """Return how many samples a recording has at another rate, rounded up."""
    return -(-num_samples * other_rate // rate)


def first_frame(token: int) -> int:
    """Return the mel frame at which a token starts in a recording, to the nearest one."""
    return (441 * token + 32) // 64


def num_frames(num_tokens: int) -> int:
    """Return how many mel frames the flow makes of so many tokens: the whole ones."""
    return 441 * num_tokens // 64


def padded_samples(num_tokens: int) -> int:
    """Return the samples at 22.05 kHz of so many tokens, in whole mel frames."""
    assert SAMPLE_RATE == 22050 and HOP == 256
    return first_frame(num_tokens) * HOP
