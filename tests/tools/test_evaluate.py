"""innervoice evaluate and generate --best-of: pairs rated once each, named failures, agreement with given scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("transformers")

from omni_models import KINDS, Spoken, sound
from safetensors.torch import save_file

from innervoice import Evaluator, Sampling, Text
from innervoice.tools.cli.main import main
from innervoice.tools.manifest.rating import agreements

NAMES = ["need_support", "wording"]
ON_CPU = ["--device", "cpu", "--max-model-len", "1024"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that hears, with two heads."""
    folder = tmp_path_factory.mktemp("rated")
    Spoken(folder, KINDS[1])
    generator = torch.Generator().manual_seed(4)
    weights = {
        "heads.weight": torch.randn(2, 64, generator=generator) / 16,
        "heads.bias": torch.full((2,), 3.0),
    }
    save_file(weights, folder / "heads.safetensors")
    (folder / "heads.json").write_text(json.dumps({"names": NAMES}))
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    made = []
    for n in range(3):
        made.append(tmp_path / f"{n}.wav")
        soundfile.write(made[-1], sound(16000 + 1600 * n, n), 16000, subtype="FLOAT")
    return made


def test_one_pair_is_scored_and_described(
    folder: Path, recordings: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Sampling(temperature=0, max_new_tokens=6)
    with Evaluator.from_pretrained(folder, device="cpu", max_model_len=256) as evaluator:
        bare = evaluator.score(recordings[0], [recordings[1], Text("I hear you")], describe=False)
        described = evaluator.score(recordings[0], recordings[1], sampling=short)
    words = ["evaluate", str(recordings[0]), str(recordings[1]), "--model", str(folder), *ON_CPU]
    assert main([*words, "--reply-text", "I hear you", "--no-describe", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["scores"] == pytest.approx(bare.scores, abs=1e-5)
    assert (made["method"], made["description"], list(made["scores"])) == ("heads", None, NAMES)
    assert made["usage"]["prompt_tokens"] == bare.usage.prompt_tokens
    monkeypatch.setattr(Evaluator.score_many, "__kwdefaults__", {"sampling": short})
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"mean             {described.mean:.3f}" in shown and "EmpathyEval" not in shown
    assert (described.description or "").strip()[:3] in shown
    assert main([*words, "--zero-shot"]) == 0
    assert (
        "zero-shot ratings of a model that was not trained to rate: this is not EmpathyEval"
        in capsys.readouterr().out
    )


def test_a_manifest_is_rated_once_and_goes_on(
    folder: Path, recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that are none and pairs that fail are named; a file that breaks off comes to be the whole one."""
    soundfile.write(tmp_path / "short.wav", sound(200), 16000)
    given = [{"need_support": 2.0, "wording": 4.5}, {"need_support": 3.5}, {"need_support": 3.0, "other": 1}]
    lines: list[Any] = [
        {"id": "a", "question": "0.wav", "reply": "1.wav", "scores": given[0], "label": "sad"},
        "{broken",
        {
            "id": "b",
            "question": "0.wav",
            "reply": {"audio": "2.wav", "text": "you did well"},
            "scores": given[1],
        },
        {"id": "none", "question": "0.wav"},
        {"id": "brief", "question": "0.wav", "reply": "short.wav"},
        {"id": "gone", "question": "0.wav", "reply": "missing.wav"},
        {"question_text": "I failed", "reply_text": "oh no", "scores": given[2]},
        {"id": "odd", "question": "0.wav", "reply": "1.wav", "scores": [1]},
    ]
    manifest, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    manifest.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    words = [
        "evaluate",
        "--manifest",
        str(manifest),
        "--out",
        str(out),
        "--model",
        str(folder),
        *ON_CPU,
        "--no-describe",
    ]
    assert main(words) == 2
    captured = capsys.readouterr()
    for part in (
        "pairs.jsonl, line 2 is not JSON",
        "pairs.jsonl, line 4: the reply has no audio: give the path of a recording as reply, or its words as reply_text",
        "pairs.jsonl, line 8: scores is [1]: it must be an object of numbers by name",
        "short.wav: audio has 200 samples at 16000 Hz",
        "item 'brief': ",
        "item 'gone': ",
        "5 of 8 pairs failed, which are named above",
    ):
        assert part in captured.err, captured.err
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in made] == ["a", "b", "7"]
    assert made[0]["fields"] == lines[0]
    assert "wrote" in captured.out and "3 of 8 pairs, 3 of them now" in captured.out
    want = [one["need_support"] for one in given]
    got = [one["scores"]["need_support"] for one in made]
    lcc, mse = np.corrcoef(want, got)[0, 1], np.mean(np.square(np.subtract(want, got)))
    assert f"need_support     LCC {lcc:.3f}, MSE {mse:.3f}, of 3 pairs" in captured.out
    assert "wording          LCC none, MSE" in captured.out and "of 1 pairs" in captured.out
    with Evaluator.from_pretrained(folder, device="cpu", max_model_len=256) as evaluator:
        alone = evaluator.score(recordings[0], [recordings[2], Text("you did well")], describe=False)
    assert made[1]["scores"] == pytest.approx(alone.scores, abs=1e-5)

    # Killed while the second line was written; then once more with nothing left to do but what fails.
    before = out.read_text()
    out.write_text(before[: before.index("\n") + 30])
    assert main([*words, "--concurrency", "1"]) == 2
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in again] == ["a", "b", "7"] and again[0] == made[0]
    for one, other in zip(again, made, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert "3 of 8 pairs, 2 of them now" in capsys.readouterr().out
    assert main([*words[:-1], "--zero-shot"]) == 2
    assert "holds a run with another zero_shot, describe" in capsys.readouterr().err


def test_agreement_is_numpys() -> None:
    generator = np.random.default_rng(3)
    given = [{"a": float(x), "b": 1.0} for x in generator.uniform(1, 5, 40)]
    noise = generator.normal(size=40).tolist()
    rated = [{"a": 0.5 * one["a"] + x, "b": x, "c": 2.0} for one, x in zip(given, noise, strict=True)]
    found = agreements(given, rated)
    want, got = [one["a"] for one in given], [one["a"] for one in rated]
    assert found["a"].lcc == pytest.approx(np.corrcoef(want, got)[0, 1])
    assert found["a"].mse == pytest.approx(np.mean(np.square(np.subtract(want, got))))
    assert found["b"].lcc is None and found["b"].num == 40 and "c" not in found
    assert agreements([], []) == {} and agreements([{}], [{"a": 1.0}]) == {}


def test_the_best_of_several_replies_is_kept(
    folder: Path, recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.jsonl"
    words = [
        "generate", str(recordings[0]), "--model", str(folder), *ON_CPU, "--max-new-tokens", "8", "--seed", "5",
        "--temperature", "1.0", "--events", str(events), "--best-of", "3",
    ]  # fmt: skip
    assert main([*words, "--by", "wording", "--evaluator", str(folder)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if "seed" in line]
    scores = {int(row[-3].rstrip(":")): float(row[-1]) for row in rows}
    assert sorted(scores) == [5, 6, 7] and "EmpathyEval" not in shown
    best = max(scores, key=scores.__getitem__)
    assert f"* seed {best}: wording" in shown
    done = [json.loads(line) for line in events.read_text().splitlines()][-1]
    assert done["usage"]["sampling"]["seed"] == best
    assert main(words) == 0
    assert "this is not EmpathyEval" in capsys.readouterr().out
    assert main([*words, "--by", "charm"]) == 2
    assert "--by is 'charm': use mean, need_support" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "q.wav"], "no reply: give a recording or --reply-text"),
        (["evaluate", "q.wav", "r.wav", "--out", "x"], "--out and --concurrency are for a file of pairs"),
        (["evaluate", "--manifest", "p.jsonl"], "the scores of a manifest need a file: give --out"),
        (
            ["evaluate", "q.wav", "--manifest", "p", "--out", "o"],
            "a manifest has its own questions and replies",
        ),
        (["evaluate", "--manifest", "none.jsonl", "--out", "o"], "none.jsonl"),
        (["evaluate", "--manifest", "none.jsonl", "--out", "no/where/o"], "there is no directory"),
        (["evaluate", "q.wav", "r.wav"], "has no heads, neither heads.json nor a score.weight"),
        (["generate", "--text", "hi", "--by", "mean", "--evaluator", "x"], "give --best-of too"),
        (["generate", "--text", "hi", "--best-of", "2", "--greedy"], "leave --greedy and --manifest out"),
    ],
)
def test_refusals(
    words: list[str], message: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--model", str(tiny_dir)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("innervoice: ") and error.count("\n") == 1
