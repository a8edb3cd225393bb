"""What training exports is what the engine reads, and does what training computed; the engine knows nothing
of training.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from paths import ENGINE, KERNELS
from source_tree import imports, modules
from training.export import CONFIG, scaled_flow, scaled_hift
from training.features.frames import num_frames
from training.flow.model import SCALE, Flow
from training.hift.model import Hift

from innervoice.codec.glm_voice.decoder import SpeechDecoder


@pytest.fixture
def networks() -> tuple[Flow, Hift]:
    torch.manual_seed(0)
    return Flow().eval(), Hift().eval()


def test_the_engine_does_not_import_training() -> None:
    for root in (ENGINE, KERNELS):
        names = {name.split(".")[0] for path in modules(root) for name in imports(path, root)}
        assert "training" not in names


def test_estimator_ignores_the_noise(networks: tuple[Flow, Hift]) -> None:
    flow, _ = networks
    mu, nothing = torch.randn(1, 80, 64), torch.zeros(1, 80, 64)
    speaker = torch.zeros(1, 80)
    made = [
        flow.decoder.estimator(noise, mu, speaker, nothing, torch.zeros(1))
        for noise in (nothing, torch.randn_like(mu))
    ]
    assert torch.equal(*made)


def test_engine_decodes_what_training_made(networks: tuple[Flow, Hift], work_dir: Path) -> None:
    flow, hift = networks
    for network, scaled, name in ((flow, scaled_flow, "flow.pt"), (hift, scaled_hift, "hift.pt")):
        torch.save(
            {key: value.half() for key, value in scaled(network.state_dict()).items()}, work_dir / name
        )
        network.load_state_dict({key: value.half() for key, value in network.state_dict().items()})
    shutil.copy(CONFIG, work_dir / "config.yaml")
    decoder = SpeechDecoder.from_pretrained(work_dir)
    codes = torch.randint(1024, (40,), generator=torch.Generator().manual_seed(1))
    expected = flow.mel(codes)
    assert expected.std() > 0.1
    # The solver adds noise, which the network ignores.
    noise = decoder.mel(codes.tolist(), steps=1)[0] - SCALE * expected
    assert abs(noise.std() - 1) < 0.05
    assert abs(noise.mean()) < 0.05
    assert len(decoder.decode(codes.tolist(), steps=1)) == num_frames(len(codes)) * 256


def test_vocoder_takes_the_scaled_mel(networks: tuple[Flow, Hift]) -> None:
    _, hift = networks
    mel = torch.randn(80, 24)
    plain = hift.speak(mel)
    hift.load_state_dict(scaled_hift(hift.state_dict()))
    assert torch.allclose(hift.speak(SCALE * mel), plain, atol=1e-3)
