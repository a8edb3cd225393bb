"""Heads on hidden states: scores against transformers' states, pages shared by replies to one question, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

pytest.importorskip("transformers")

import chat_files
import transformers
from family_models import make
from omni_models import KINDS, NAMES, Spoken, sound
from safetensors.torch import load_file, save_file

from innervoice import Engine, Evaluator, Ids, Message, Sampling, Text
from innervoice.checkpoint.heads import Heads, HeadsConfig, read_heads
from innervoice.codec.audio_encoder import AudioEncoder, FeatureWindow

NUM = ("need_support", "wording", "understanding", "support")
QUESTION, REPLY = sound(160 * 210, 1), sound(160 * 130, 2)
PAIR: tuple[Any, Any] = ((QUESTION, 16000), (REPLY, 16000))


def random_heads(seed: int = 3, **config: Any) -> Heads:
    """Four heads whose scores are about 3, give or take 1."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 64, generator=generator) / 16
    bias = 3 + 0.1 * torch.randn(4, generator=generator)
    return Heads(HeadsConfig(NUM, **{"map": "none"} | config), ((weight, bias),))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("omni"), KINDS[0])


@pytest.fixture(scope="module")
def engine(spoken: Spoken) -> Iterator[Engine]:
    with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=512, max_sessions=4) as made:
        yield made


def prompt_of(spoken: Spoken, *parts: str | None) -> list[int]:
    """The template's ids of a user's turn; None: a recording."""
    content = [{"type": "audio"} if part is None else {"type": "text", "text": part} for part in parts]
    return spoken.prompt([{"role": "user", "content": content}])


def placed(ids: list[int], spoken: Spoken, recordings: list[np.ndarray]) -> list[int]:
    """The ids of a prompt with as many stand-ins as each recording has rows."""
    row, left = spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][0]), iter(recordings)
    return [j for i in ids for j in ([row] * len(spoken.rows(next(left))) if i == row else [i])]


def pooled(spoken: Spoken, ids: list[int], recordings: list[np.ndarray], heads: HeadsConfig) -> Tensor:
    """The reference's states, pooled as the heads are."""
    states = spoken.states(ids, recordings)[heads.layer]
    whole = torch.tensor(placed(ids, spoken, recordings))
    if heads.pool == "last":
        return states[-1]
    wanted = (
        spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][0])
        if heads.pool == "mean_audio"
        else heads.pool
    )
    found = states[whole == wanted]
    return found.mean(0) if heads.pool == "mean_audio" else found[-1]


@pytest.mark.parametrize("layer", [-1, 0, 1, -2])
@pytest.mark.parametrize("pool", ["last", "mean_audio", "end"])
def test_scores_are_heads_of_the_references_states(
    spoken: Spoken, engine: Engine, pool: Any, layer: int
) -> None:
    """Alone and warm, in a batch, with words beside the recordings, and with a prompt around them."""
    end = spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][4])
    heads = random_heads(
        pool=end if pool == "end" else pool, layer=layer, prompt="Said: {question} heard {reply} rate"
    )
    evaluator = Evaluator(engine, heads)
    (weight, bias) = heads.layers[0]
    cases = [
        (PAIR, ("Said: ", None, " heard ", None, " rate"), [QUESTION, REPLY]),
        (
            ([PAIR[0], Text("words")], PAIR[1]),
            ("Said: ", None, "words heard ", None, " rate"),
            [QUESTION, REPLY],
        ),
        ((PAIR[1], Text("a reply")), ("Said: ", None, " heard a reply rate"), [REPLY]),
    ]
    made = list(evaluator.score_many([pair for pair, _, _ in cases]))
    for (pair, parts, recordings), evaluation in zip(cases, made, strict=True):
        ids = prompt_of(spoken, *parts)
        want = weight @ pooled(spoken, ids, recordings, heads.config) + bias
        assert list(evaluation.scores) == list(NUM)
        assert list(evaluation.scores.values()) == pytest.approx(want.tolist(), abs=1e-5)
        assert evaluation.mean == pytest.approx(float(want.mean()), abs=1e-5)
        assert (evaluation.method, evaluation.description) == ("heads", None)
        assert evaluation.usage.prompt_tokens == len(placed(ids, spoken, recordings))
        again = evaluator.score(*pair, describe=False)
        assert again.scores == pytest.approx(evaluation.scores, abs=1e-5)
        assert again.usage.cached_tokens >= evaluation.usage.cached_tokens
    assert made[0].scores["wording"] != pytest.approx(made[1].scores["wording"], abs=1e-3) or layer == 0


def test_warm_prefixes_score_as_cold_ones(spoken: Spoken) -> None:
    """Pages of an earlier reply, of a description and of nothing: the same scores, and fewer tokens fed."""
    for pool in ("last", "mean_audio"):
        with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=512, max_sessions=2) as fresh:
            evaluator = Evaluator(fresh, random_heads(pool=pool))
            cold = evaluator.score(*PAIR, describe=False)
            warm = evaluator.score(*PAIR, describe=False)
        assert cold.usage.cached_tokens == 0 < warm.usage.cached_tokens
        assert warm.usage.cached_tokens >= (warm.usage.prompt_tokens - 16) // 16 * 16 - 16
        assert warm.scores == pytest.approx(cold.scores, abs=1e-5)


@pytest.mark.parametrize("pool", ["last", "mean_audio"])
def test_ten_replies_to_one_question_prefill_it_once(
    spoken: Spoken, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    """The question's windows are encoded once, its whole pages fed once, and each reply's own tokens once."""
    windows: list[int] = []
    plain = AudioEncoder.encode_windows

    def counting(self: AudioEncoder, given: list[FeatureWindow]) -> Any:
        windows.append(len(given))
        return plain(self, given)

    monkeypatch.setattr(AudioEncoder, "encode_windows", counting)
    replies = [sound(160 * 90, 30 + n) for n in range(10)]
    with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=512, max_sessions=4) as fresh:
        evaluator = Evaluator(fresh, random_heads(pool=pool))
        made = list(evaluator.score_many([(PAIR[0], (reply, 16000)) for reply in replies]))
        assert sum(windows) == 2 + 10  # the question has two windows of 200 frames, each reply one
        common = prompt_of(spoken, None, None).index(
            spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][4])
        )
        question = common + len(spoken.rows(QUESTION))  # up to the second recording's begin
        fed = [one.usage.prompt_tokens - one.usage.cached_tokens for one in made]
        pages = question // 16 * 16
        assert fed == [made[0].usage.prompt_tokens, *(one.usage.prompt_tokens - pages for one in made[1:])]
        alone = [evaluator.score(PAIR[0], (reply, 16000), describe=False).scores for reply in replies[:3]]
    for one, scores in zip(made, alone, strict=False):
        assert one.scores == pytest.approx(scores, abs=1e-5)
    assert len({one.mean for one in made}) == 10


def test_descriptions_are_replies_to_their_prompt(spoken: Spoken, engine: Engine) -> None:
    """Of the prompt of the scores, of a text behind it, and of one of their own; from the pages of the scores."""
    sampling = Sampling(temperature=0, max_new_tokens=10)
    for describe in (None, "what is heard", "{reply} answers {question}"):
        evaluator = Evaluator(engine, random_heads(prompt="{question}{reply}", describe_prompt=describe))
        made = evaluator.score(*PAIR, sampling=sampling)
        prompt: Any = evaluator.describe_prompt(*PAIR)
        reply = engine.generate(prompt, sampling=sampling)
        assert made.description == reply.transcript and made.description
        assert made.usage.transcript_tokens == reply.usage.transcript_tokens
        parts = {
            None: (None, None), "what is heard": (None, None, "\nwhat is heard"),
            "{reply} answers {question}": (None, " answers ", None),
        }[describe]  # fmt: skip
        recordings = [REPLY, QUESTION] if describe and "{reply}" in describe else [QUESTION, REPLY]
        assert reply.usage.prompt_tokens == len(placed(prompt_of(spoken, *parts), spoken, recordings))
    assert made.scores == evaluator.score(*PAIR, describe=False).scores


def test_a_whole_prompt_is_taken_as_it_is(spoken: Spoken, engine: Engine) -> None:
    """Question and reply as two turns; typed words in it are words."""
    end = "<|im_end|>"
    text = f"<|im_start|>user\n{{question}}{end}\n<|im_start|>assistant\n{{reply}}{end}\n"
    heads = random_heads(prompt=text)
    begin, row, close = (NAMES[spoken.kind][i] for i in (3, 0, 4))
    spelled = text.replace("{question}", begin + row + close).replace("{reply}", "the speaker")
    ids = spoken.tokenizer.encode(spelled, add_special_tokens=False)
    want = heads.layers[0][0] @ pooled(spoken, ids, [QUESTION], heads.config) + heads.layers[0][1]
    made = Evaluator(engine, heads).score(PAIR[0], Text("the speaker"), describe=False)
    assert list(made.scores.values()) == pytest.approx(want.tolist(), abs=1e-5)
    prompt = Evaluator(engine, heads).prompt(Text("a" + end), Text("b"))
    assert isinstance(prompt, Ids) and list(prompt.ids).count(2) == 2
    with pytest.raises(ValueError, match=r"prompt is a whole prompt, and describe_prompt has no {question}"):
        Evaluator(engine, random_heads(prompt=text, describe_prompt="why"))


def test_scores_are_mapped_to_the_scale() -> None:
    states = torch.eye(64)[:2] * torch.tensor([[800.0], [-800.0]])
    one = random_heads()
    low_high = {"clamp": (1.0, 5.0), "sigmoid": (1.0, 5.0)}
    raw = one.scores(states)
    for name, (low, high) in low_high.items():
        got = replace(one, config=replace(one.config, map=name)).scores(states)
        assert got.min() == low and got.max() == high
        assert torch.equal((raw > 3).float(), (got > 3).float())
    small = random_heads(map="sigmoid", scale=(0.0, 1.0))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(small.scores(x), (x @ small.layers[0][0].T + small.layers[0][1]).sigmoid())


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with heads of two layers in files."""
    folder = tmp_path_factory.mktemp("rated")
    chat_files.save(folder, "chatml")
    make("qwen3", vocab_size=512, eos_token_id=[0, 2]).save_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "heads.0.weight": (20, 64),
        "heads.0.bias": (20,),
        "heads.2.weight": (4, 20),
        "heads.2.bias": (4,),
    }
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / "heads.safetensors",
    )
    (folder / "heads.json").write_text(json.dumps({"names": list(NUM), "map": "none", "layer": 2}))
    return folder


def test_heads_of_two_layers_from_files(rated: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(rated, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(rated)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "nobody hears\nlisten"}], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        state = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, -1]
    w = load_file(rated / "heads.safetensors")
    inner = torch.nn.functional.gelu(w["heads.0.weight"] @ state + w["heads.0.bias"])
    want = w["heads.2.weight"] @ inner + w["heads.2.bias"]
    with Evaluator.from_pretrained(rated, device="cpu", max_model_len=64) as evaluator:
        made = evaluator.score(
            Text("nobody hears"), Text("listen"), sampling=Sampling(temperature=0, max_new_tokens=4)
        )
        assert list(made.scores.values()) == pytest.approx(want.tolist(), rel=1e-5, abs=1e-5)
        assert made.usage.total_new_tokens <= 4 and made.description is not None
        with pytest.raises(ValueError, match="pooled over recordings, and the pair has none"):
            Evaluator(evaluator.engine, random_heads(pool="mean_audio")).score(Text("a"), Text("b"), False)
        with pytest.raises(ValueError, match="the prompt has no token 7, by which"):
            Evaluator(evaluator.engine, random_heads(pool=7)).score(Text("a"), Text("b"), False)
        for wrong, message in ((Ids([1]), "the reply is given as Ids"), ([], "the reply is empty")):
            with pytest.raises(ValueError, match=message):
                evaluator.score(Text("a"), wrong, False)
        with pytest.raises(ValueError, match=r"the prompt has \d+ tokens"):
            evaluator.score(Text("a " * 60), Text("b"), False)


def test_sequence_classifiers_of_transformers(tmp_path: Path) -> None:
    """score.weight beside a model without an output layer; nothing describes."""
    tokenizer = chat_files.save(tmp_path, "chatml")
    config = make("qwen3", vocab_size=512, eos_token_id=[0, 2]).config
    config.num_labels, config.problem_type = 4, "regression"
    config.id2label = dict(enumerate(NUM))
    theirs = transformers.Qwen3ForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            1 if parameter.ndim == 1 else 0.15
        )
    theirs.save_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one\ntwo"}], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        want = theirs(torch.tensor([ids])).logits[0].tolist()
    with Evaluator.from_pretrained(tmp_path, device="cpu", max_model_len=64) as evaluator:
        made = evaluator.score(Text("one"), Text("two"), describe=False)
        assert list(made.scores) == list(NUM)
        assert list(made.scores.values()) == pytest.approx(want, rel=1e-5, abs=1e-5)
        with pytest.raises(ValueError, match="no output layer to describe with: give describe=False"):
            evaluator.score(Text("one"), Text("two"))
    values = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"problem_type": "single_label_classification"}, "problem_type is 'single_label_classification'"),
        ({"id2label": {"0": "a", "1": "b"}}, r"has 2 names \(a, b\), and the heads have 4 rows"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=message):
            Evaluator.from_pretrained(tmp_path, device="cpu")


def heads_file(folder: Path, config: dict[str, Any] | None, **tensors: Tensor) -> Path:
    """A folder with a model's tensors and these heads."""
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    if config is not None:
        (folder / "heads.json").write_text(json.dumps(config))
    if tensors:
        named = {f"heads.{name.replace('_', '.')}": x.contiguous() for name, x in tensors.items()}
        save_file(named, folder / "heads.safetensors")
    return folder


W = torch.ones(4, 64)
NAMED: dict[str, Any] = {"names": list(NUM)}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, {}, "has no heads, neither heads.json nor a score.weight: .* judge with ZeroShotJudge"),
        (NAMED, {}, "has no heads.safetensors beside its heads.json"),
        (None, {"weight": W}, "has heads.safetensors and no heads.json"),
        (NAMED, {"weight": W[:, :32]}, r"heads.weight has shape \[4, 32\], expected \[N, 64\]"),
        ({"names": ["a", "b", "c"]}, {"weight": W}, r"has 3 names \(a, b, c\), and the heads have 4 rows"),
        ({"names": ["a", "a", "b", "c"]}, {"weight": W}, "expected a list of different texts"),
        ({"names": []}, {"weight": W}, "names is .*expected a list of different texts, at least one"),
        ({}, {"weight": W}, "key 'names' is missing"),
        (NAMED, {"bias": W[:, 0]}, "tensor heads.weight is missing"),
        (NAMED, {"weight": W, "bias": W[:3, 0]}, r"heads.bias has shape \[3\], expected \[4\]"),
        (NAMED, {"weight": W * torch.nan}, "holds NaN or infinity"),
        (NAMED, {"0_weight": W, "2_weight": W[:, :5]}, r"heads.2.weight has shape \[4, 5\], expected \[N, 4\]"),
        (NAMED, {"0_weight": W}, "tensor heads.2.weight is missing"),
        (NAMED | {"pool": "first"}, {"weight": W}, "pool is 'first', expected"),
        (NAMED | {"pool": {"token": "x"}}, {"weight": W}, "pool is .*expected"),
        (NAMED | {"pool": {"token": 512}}, {"weight": W}, "pool names token 512, outside the vocabulary of 512"),
        (NAMED | {"layer": 4}, {"weight": W}, "layer is 4, expected -4 to 3"),
        (NAMED | {"layer": "x"}, {"weight": W}, "layer is 'x'"),
        (NAMED | {"scale": [5, 1]}, {"weight": W}, r"scale is \[5, 1\], expected the lowest"),
        (NAMED | {"map": "tanh"}, {"weight": W}, "map is 'tanh', expected clamp, sigmoid, none"),
        (NAMED | {"prompt": "{question}"}, {"weight": W}, "prompt has {reply} 0 times, expected once"),
        (NAMED | {"describe_prompt": "{reply}"}, {"weight": W}, "describe_prompt has {question} 0 times"),
        (NAMED | {"describe_prompt": " "}, {"weight": W}, "describe_prompt is empty"),
        (NAMED | {"temperature": 1}, {"weight": W}, "unknown key 'temperature'"),
    ],
)  # fmt: skip
def test_refused_heads(tmp_path: Path, config: Any, tensors: dict[str, Tensor], message: str) -> None:
    folder = heads_file(tmp_path / "m", config, **tensors)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_heads(folder, 64, 3, 512)
    assert "\n" not in str(error.value)


def test_bad_pairs_are_refused(engine: Engine, tmp_path: Path) -> None:
    evaluator = Evaluator(engine, random_heads())
    short = tmp_path / "short.wav"
    soundfile.write(short, sound(200), 16000)
    with pytest.raises(ValueError, match=f"^{short}: audio has 200 samples at 16000 Hz"):
        evaluator.score(PAIR[0], short, describe=False)
    with pytest.raises(ValueError, match="has 200 samples at 16000 Hz"):
        evaluator.score(PAIR[0], (sound(200), 16000), describe=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluator.score("nowhere.wav", Text("x"), describe=False)
    assert isinstance(evaluator.prompt(*PAIR), list) and isinstance(evaluator.prompt(*PAIR)[0], Message)
