"""What training exports is what the engine reads, and does what training computed; the engine knows nothing
of training.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from paths import ENGINE, KERNELS
from rows import Rows
from source_tree import imports, modules
from training.export import CONFIG, scaled_flow, scaled_hift, write_language_model
from training.features.frames import num_frames
from training.flow.model import SCALE, Flow
from training.hift.model import Hift
from training.lm.layout import MODES, Mode, prompt, reply
from training.lm.model import LanguageModel
from training.lm.vocabulary import CLOSE, DONE, END, FIRST_CODE, NUM_TEXT, OPEN, SIZE, decode, encode
from training.text.grammar import all_replies, reflections, short_reflections
from training.text.situations import SITUATIONS

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.model.families import glm4_voice
from innervoice.model.transformer import Transformer
from innervoice.schedule import Schedule, compile_schedule, make_cursor
from innervoice.types import Vocabulary


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


SPOKEN = "I am so sorry to hear that. It is hard when your dog died. What was your dog like, and how do you feel now?"
HIDDEN = ("The user feels sad.", "Name the loss.", "Do not hurry.")
SCHEDULES: dict[Mode, tuple[Schedule, ...]] = {
    "off": (Schedule.preset("interleaved"), Schedule.preset("think_first", reflection="off")),
    "first": (Schedule.preset("think_first"),),
    "after": (Schedule.preset("stitch_s"), Schedule.preset("reempathy")),
    "before": (Schedule.preset("stitch_r"), Schedule.preset("reempathy", reflect_first=True)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_words", [4, 13, 20, 26])
def test_schedules_take_what_training_shows(mode: Mode, num_words: int) -> None:
    ids = encode(SPOKEN)[:num_words]
    said = reply(ids, range(4 * num_words), [encode(sentence) for sentence in HIDDEN], mode)
    vocabulary = Vocabulary(
        SIZE, (0, NUM_TEXT), (FIRST_CODE, FIRST_CODE + 1024), END, OPEN, CLOSE, DONE, eos=(END,)
    )
    for schedule in SCHEDULES[mode]:
        cursor = make_cursor(compile_schedule(schedule, vocabulary), (), ignore_eos=False)
        for token in said:
            if cursor.forced is not None:
                assert cursor.emit_forced().token == token
            elif cursor.draw(token) is None:  # the text is finished: the same token begins the speech
                assert cursor.draw(token) is not None
        assert cursor.is_done


def test_text_tokens() -> None:
    texts = all_replies()[::500]
    assert [decode(encode(text)) for text in texts] == texts
    assert max(len(encode(text)) for text in texts) <= 2 * max(len(text.split()) for text in texts)
    assert len(prompt([1, 2], first=False)) < len(prompt([1, 2]))


def test_engine_has_the_logits_of_training(work_dir: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel().eval()
    write_language_model(work_dir, model.state_dict())
    model.load_state_dict({name: value.half() for name, value in model.state_dict().items()})
    config = glm4_voice.read_config(read_json(work_dir / "config.json"), work_dir / "config.json")
    engine = Transformer(config, glm4_voice.load_weights(config, TensorDir(work_dir), torch.float32))
    ids = prompt(range(30))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    assert torch.allclose(Rows(engine, 1, len(ids)).step([ids])[0], expected, atol=1e-5)


def test_a_sentence_of_reflection_fits_into_a_cycle_of_reempathy() -> None:
    [budget] = [one.budget for one in Schedule.preset("reempathy").cycle if one.kind == "reflection"]
    every = [*short_reflections(), *(parts for situation in SITUATIONS for parts in reflections(situation))]
    lengths = {sentence: len(encode(sentence)) for parts in every for sentence in parts}
    assert {sentence for sentence, length in lengths.items() if length > budget} == set()
