"""How close `steady` comes to one offline call: bench/closeness.py says what is compared, here it is held to
its limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benches import bench

from innervoice.codec.glm_voice.decoder import SpeechDecoder

closeness = bench("closeness")


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> SpeechDecoder:
    return closeness.load(tiny_dir / "glm-4-voice-decoder")  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[125, pytest.param(375, marks=pytest.mark.slow)], ids=["10 s", "30 s"])
def reply(decoder: SpeechDecoder, request: pytest.FixtureRequest) -> Any:
    return closeness.make_reply(decoder, request.param)


def test_steady_is_close_to_offline_and_wrong_codes_are_not(decoder: SpeechDecoder, reply: Any) -> None:
    """Frames and sound, overall and near borders."""
    for ours, wrong in closeness.distances(decoder, reply).values():
        assert max(ours) <= closeness.LIMIT
        assert min(wrong) > closeness.LIMIT


def test_no_border_is_a_click(reply: Any) -> None:
    most, usual = closeness.border_steps(reply)
    assert most <= usual


def test_the_mix_sums_to_one(decoder: SpeechDecoder) -> None:
    rise = decoder.steady(num_slots=1)._networks._frames._rise
    assert torch.equal(rise + (1 - rise), torch.ones(closeness.SETTINGS.fade))
    assert torch.allclose(rise + rise.flip(0), torch.ones(closeness.SETTINGS.fade))
