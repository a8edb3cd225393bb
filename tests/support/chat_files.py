"""Checkpoint directories for chat tests: tokenizers trained on a few sentences, chat templates of the common shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "The listener hears what the speaker says, and the speaker thinks while the listener listens. "
    "Nothing that is thought is heard; what is heard was thought before. Don't hurry: 12 or 345 words are enough!\n\n"
    "user assistant system answer the question, then ask one. Être où? 你好。"
)  # fmt: skip

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'Functions:' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- elif not (tools and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}
    {{- '<|head|>' + message.role + '<|/head|>\\n\\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}
"""
GLM = """
[gMASK]<sop>
{%- for message in messages %}<|{{ message.role }}|>
{% if message.content %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
""".strip()
LLAMA2 = """
{%- if messages[0].role == 'system' %}{{ raise_exception('System text is not supported') }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- bos_token + '[INST] ' + message.content | trim + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def byte_level(special: tuple[str, ...], *, first: bool) -> Tokenizer:
    """A byte-level tokenizer; the special tokens have the first ids, or the last."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(special) if first else [],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([SENTENCES], trainer)
    if not first:
        made.add_special_tokens(list(special))
    return made


def sentencepiece_like() -> Tokenizer:
    """Words begin with U+2581; unknown characters are byte tokens; the merges could spell <s>."""
    words = ["\u2581", "t", "h", "e", "r", "i", "s", "n", "<", ">", "I", "N", "S", "T", "[", "]", "/"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "s"), ("\u2581", "is"), ("\u2581", "[")]
    merges += [("<", "s"), ("<s", ">"), ("S", "T"), ("\u2581", "s")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [joined for pair in merges if (joined := "".join(pair)) not in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    return made


SHAPES: dict[str, dict[str, Any]] = {
    "chatml": {
        "template": CHATML, "eos": "<|im_end|>", "first": True,
        "special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    },
    "llama3": {
        "template": LLAMA3, "eos": "<|eot|>", "bos": "<|begin|>", "first": False,
        "special": ("<|begin|>", "<|end|>", "<|head|>", "<|/head|>", "<|eot|>"),
    },
    "glm": {
        "template": GLM, "eos": "<|user|>", "first": False,
        "special": ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    },
    "llama2": {"template": LLAMA2, "eos": "</s>", "bos": "<s>"},
}  # fmt: skip


def save(
    folder: Path,
    name: str,
    *,
    marks: tuple[str, ...] = (),
    template: str | None = None,
    shape: dict[str, Any] | None = None,
) -> PreTrainedTokenizerFast:
    """transformers' own files of a tokenizer with a template, and a config.json with its size and eos ids.

    shape: in place of that of the name.
    """
    it = shape or SHAPES[name]
    made = sentencepiece_like() if name == "llama2" else byte_level(it["special"], first=it["first"])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in marks])
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=it.get("bos"), eos_token=it["eos"])
    theirs.chat_template = template or it["template"]
    theirs.save_pretrained(folder)
    eos = [theirs.convert_tokens_to_ids(token) for token in ("<|endoftext|>", it["eos"])]
    config = {"model_type": "llama", "vocab_size": 512, "eos_token_id": [i for i in eos if i is not None]}
    (folder / "config.json").write_text(json.dumps(config))
    return theirs
