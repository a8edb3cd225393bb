"""Replies by the device's step, and one by one by plain torch and the host's cursor: two ways to the same
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from random_schedules import VOCABULARY
from rows import Rows

from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import DummyTensors, TensorSource
from innervoice.model.device_step import DeviceStep, RowStart
from innervoice.model.families import family_of
from innervoice.model.kv_cache import KVCache
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice.schedule import Program, Schedule, TokenKind, compile_schedule, make_cursor
from innervoice.types import Sampling, Vocabulary
from innervoice_kernels.backend import use
from innervoice_kernels.sampling.cursor_columns import Ending
from innervoice_kernels.sampling.sample import Draw, sample_ref

PAGE = 4
Token = tuple[int, TokenKind, int, bool]
_CONFIG: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMForConditionalGeneration"], "num_layers": 1, "hidden_size": 32,
    "ffn_hidden_size": 32, "num_attention_heads": 2, "multi_query_attention": True, "multi_query_group_num": 1,
    "kv_channels": 16, "layernorm_epsilon": 3.90625e-08, "rmsnorm": True,
    "post_layer_norm": True, "add_qkv_bias": True, "add_bias_linear": False, "rope_ratio": 1, "original_rope": True,
    "torch_dtype": "float32", "tie_word_embeddings": False,
}  # fmt: skip

_EXPERTS: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "rms_norm_eps": 3.90625e-08, "max_position_embeddings": 2048, "torch_dtype": "float32",
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """The request of one row."""

    prompt: tuple[int, ...]
    schedule: Schedule
    sampling: Sampling
    caps: tuple[int, ...] = ()

    @property
    def program(self) -> Program:
        return compile_schedule(self.schedule, VOCABULARY)

    @property
    def log_weight(self) -> float:
        return math.log(self.schedule.reflection_weight)


class HostTensors(DummyTensors):
    """Random weights that are drawn on the host and moved: a generator of another device draws others."""

    def get(self, name: str, shape: Any, *, dtype: Any = None, device: Any = "cpu") -> torch.Tensor:
        return super().get(name, shape, dtype=dtype, device="cpu").to(device)


def small_model(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    to: Quantization | None = None,
    vocabulary: Vocabulary = VOCABULARY,
    *,
    experts: bool = False,
) -> Transformer:
    """Random weights, quantised or not, whose logits are some units apart; the same on every device."""
    size = "vocab_size" if experts else "padded_vocab_size"
    data = (_EXPERTS if experts else _CONFIG) | {size: vocabulary.size, "eos_token_id": list(vocabulary.eos)}
    family = family_of(data, "config.json")
    config = family.read_config(data, "config.json")
    source: TensorSource = HostTensors(std=0.4) if to is None else QuantizingSource(HostTensors(std=0.4), to)
    weights = family.load_weights(config, source, dtype, device)
    return Transformer(config, weights)


def by_the_host(model: Transformer, reply: Reply) -> list[Token]:
    """The reply alone: plain torch, one token at a time."""
    program, sampling = reply.program, reply.sampling
    cursor = make_cursor(program, reply.caps, ignore_eos=sampling.ignore_eos)
    rows = Rows(
        model, 1, len(reply.prompt) + sampling.max_new_tokens + 1, weights=[reply.schedule.reflection_weight]
    )
    out: list[Token] = []
    feed, tags = list(reply.prompt), [(0, 0)] * len(reply.prompt)
    while len(out) < sampling.max_new_tokens and not cursor.is_done:
        with use("ref"):
            logits = rows.step([feed], [tags])[0][-1:]
        emission, d = None, 0
        while emission is None:
            if cursor.forced is not None:
                emission = cursor.emit_forced()
                break
            s, own, mask = sampling, cursor.sampling, cursor.mask
            t, k, p = (
                getattr(s if own is None or getattr(own, n) is None else own, n)
                for n in ("temperature", "top_k", "top_p")
            )
            ids, _ = sample_ref(logits, [Draw(mask.ranges, mask.extras, t, k, p, s.seed or 0, len(out), d)])
            emission, d = cursor.draw(int(ids)), d + 1
        out.append((emission.token, emission.kind, emission.segment, emission.forced))
        is_weighted = reply.log_weight != 0
        hidden = is_weighted and emission.kind.is_hidden
        spoken = is_weighted and not hidden and emission.kind is not TokenKind.END
        feed, tags = [emission.token], [(int(spoken), int(hidden))]
    return out


def prefill(model: Transformer, kv: KVCache, prompt: Sequence[int], pages: Sequence[int]) -> None:
    """Cache all tokens of a prompt but the last."""
    device, num = model.weights.embedding.device, len(prompt) - 1
    if num == 0:
        return
    positions = torch.arange(num, device=device)
    table = torch.tensor([list(pages)], dtype=torch.int32, device=device)
    size = kv.k.shape[2]
    batch = AttentionInputs(
        positions=positions,
        slots=table[0, positions // size].long() * size + positions % size,
        page_table=table,
        query_start=torch.tensor([0, num], dtype=torch.int32, device=device),
        context_len=torch.tensor([num], dtype=torch.int32, device=device),
    )
    with use("ref"):
        model.forward(torch.tensor(prompt[:-1], device=device), batch, kv)


class Stepped:
    """Rows of replies in a device step, the pages of row i dealt from one pool in an order of their own."""

    def __init__(
        self, model: Transformer, replies: Sequence[Reply], max_len: int = 64, **options: Any
    ) -> None:
        config, embedding = model.config, model.weights.embedding
        most = -(-max_len // PAGE)
        self.kv = KVCache.allocate(config, len(replies) * most, PAGE, embedding.dtype, embedding.device)
        order = torch.randperm(len(replies) * most, generator=torch.Generator().manual_seed(5)).tolist()
        self.pages = [order[i * most : (i + 1) * most] for i in range(len(replies))]
        options = {"max_rows": len(replies), "max_model_len": max_len} | options
        with use("triton"):
            self.stepper = DeviceStep(model, self.kv, **options)
        self.replies = replies
        self.tokens: list[list[Token]] = [[] for _ in replies]
        self.endings: list[Ending] = [Ending.RUNNING for _ in replies]
        for row, reply in enumerate(replies):
            prefill(model, self.kv, reply.prompt, self.pages[row])
            start = RowStart(
                token=reply.prompt[-1],
                position=len(reply.prompt) - 1,
                pages=self.pages[row],
                program=reply.program,
                sampling=reply.sampling,
                caps=reply.caps,
                reply=1,
                log_weight=reply.log_weight,
            )
            self.stepper.begin(row, start)

    def run(self, steps: int, count: int = 1) -> None:
        """Step, reading one call late."""
        pending = None
        for _ in range(-(-steps // count)):
            with use("triton"):
                later = self.stepper.step(len(self.replies), count)
            if pending is not None:
                self.read(pending)
            pending = later
        if pending is not None:
            self.read(pending)

    def read(self, pending: Any) -> None:
        for step in self.stepper.read(pending):
            for e in step:
                self.endings[e.row] = e.ending
                if e.kind is not None:
                    self.tokens[e.row].append((e.token, e.kind, e.segment, e.forced))
