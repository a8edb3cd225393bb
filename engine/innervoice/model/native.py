"""The decoder's step in native code on the CPU: same weights, same pages, same arguments as
`Transformer`, one call a step.

What is multiplied is what the tensors hold: nothing is copied but the norms' weights, as float32. Between the
products all is float32; inputs of quantised weights are rounded to 16 bits (in float32 models not at all; to 8
bits where the weights are in lanes), keys and values to the pages' type.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from innervoice.model.kv_cache import KVCache
from innervoice.model.lanes import LanedWeight
from innervoice.model.pages import Backend
from innervoice.model.quant import Fp8Weight, Int4Weight, Int8Weight, Weight
from innervoice.model.rope_scaling import frequencies
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice.model.weights import LayerWeights
from innervoice_kernels import _C

log = logging.getLogger("innervoice")

_DTYPES = (torch.float32, torch.bfloat16)


def check_backend(name: str) -> None:
    """Raise ValueError for a backend that is not there."""
    if name not in get_args(Backend):
        raise ValueError(f"backend is {name!r}: use {', '.join(get_args(Backend))}")


class NativeDecoder:
    """A decoder of `_C`. team: the threads that run it; isa None: the best instructions of this processor."""

    def __init__(self, model: Transformer, team: _C.ThreadTeam, isa: str | None = None) -> None:
        c, w = model.config, model.weights
        dtype = w.final_norm.dtype
        inv_freq, rotary_scale = frequencies(c)
        shape: dict[str, Any] = {
            "num_heads": c.num_heads,
            "num_kv_heads": c.num_kv_heads,
            "head_dim": c.head_dim,
            "norm_eps": c.norm_eps,
            "rope_interleaved": c.rope_interleaved,
            "inv_freq": inv_freq.float().tolist(),
            "rotary_scale": rotary_scale,
            "rounds_to_bf16": dtype == torch.bfloat16,
            "is_exact": dtype == torch.float32,
        }
        if c.num_experts:
            shape |= {"num_used_experts": c.num_used_experts, "normalizes_experts": c.normalizes_experts}
        embedding = held(w.embedding)
        output = embedding if w.output is w.embedding else held(w.output)
        layers = [_layer(layer) for layer in w.layers]
        self.team, self.vocab_size = team, c.vocab_size
        self._decoder = _C.Decoder(team, shape, embedding, layers, w.final_norm.float(), output, isa)

    def logits(
        self,
        ids: Tensor,
        batch: AttentionInputs,
        kv: KVCache,
        wanted: Tensor,
        outputs: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Feed ids [T]; float32 logits [W, V] behind the tokens `wanted` [W], ascending.

        Writes their keys and values into kv.

        outputs: half-open ranges of ids, ascending and apart; only their logits are computed, the others are
        NaN. None: all. Raises ValueError, with nothing written, for ids, slots or pages that are not there.
        """
        out = torch.empty(len(wanted), self.vocab_size, dtype=torch.float32, device="cpu")
        if outputs is not None:
            end = 0
            for first, last in (*outputs, (self.vocab_size, self.vocab_size)):
                out[:, end:first] = torch.nan
                end = last
        # As NumPy's arrays: their way through DLPack takes a tenth of what torch's does.
        tag, log_weight = batch.query_tag, batch.log_weight
        self._decoder.step(
            ids=ids.numpy(), positions=batch.positions.numpy(), slots=batch.slots.numpy(), page_table=batch.page_table.numpy(),
            query_start=batch.query_start.numpy(), context_len=batch.context_len.numpy(), k_pages=kv.k, v_pages=kv.v,
            key_tag=kv.key_tag.numpy(), query_tag=None if tag is None else tag.numpy(),
            log_weight=None if log_weight is None else log_weight.numpy(), wanted=wanted.numpy(), logits=out.numpy(),
            outputs=None if outputs is None else np.array(outputs, np.int64).reshape(-1, 2),
        )  # fmt: skip
        return out


def make_native(
    model: Transformer, kv: KVCache, backend: str, threads: int | None = None
) -> NativeDecoder | None:
    """The native decoder where it can run this model, None where the plain path does.

    "auto": native on the CPU, or one line of log that says why not. Raises ValueError for
    "native" where it cannot run.
    """
    check_backend(backend)
    if backend == "plain" or (backend == "auto" and kv.k.device.type != "cpu"):
        return None
    reason = why_not(model, kv)
    if reason is None:
        return NativeDecoder(model, _C.ThreadTeam(threads or 0))
    if backend == "native":
        raise ValueError(f"the native decoder does not run this model: {reason}; use backend plain or auto")
    log.warning("the decoder runs in plain PyTorch: %s", reason)
    return None


def why_not(model: Transformer, kv: KVCache) -> str | None:
    """The reason why a model cannot run in the native decoder, None if it can."""
    weights = model.weights
    dtype = weights.final_norm.dtype
    if kv.k.device.type != "cpu":
        return f"it is on {kv.k.device}, not in host memory"
    if dtype not in _DTYPES or kv.k.dtype not in _DTYPES:
        return f"its type is {dtype} with pages of {kv.k.dtype}, covered are float32 and bfloat16"
    if model.config.num_experts and not hasattr(_C, "expert_ffn"):
        return "the native module is older than this package and has no experts: install the package again"
    named: list[tuple[str, Weight]] = [("embedding", weights.embedding), ("output", weights.output)]
    for layer in weights.layers:
        named += [
            ("qkv", layer.qkv),
            ("attention_out", layer.attention_out),
            ("gate_up", layer.gate_up),
            ("down", layer.down),
            *([] if layer.router is None else [("router", layer.router)]),
        ]
    for name, weight in named:
        if isinstance(weight, Fp8Weight):
            return f"{name} is in fp8, covered are float32, bfloat16, int8 and int4"
        if isinstance(weight, Int4Weight) and weight.folded:
            return f"{name} is int4 folded for a GPU, covered are codes in the order of their inputs"
        if isinstance(weight, Tensor) and (weight.dtype not in _DTYPES or not weight.is_contiguous()):
            return f"{name} is {weight.dtype} with strides {weight.stride()}, covered are contiguous float32 and bfloat16"
    return None


def held(weight: Weight) -> _C.Weight:
    """The view of a weight that native code multiplies by."""
    if isinstance(weight, LanedWeight):
        rows, columns = weight.shape
        return _C.Weight(weight.codes, weight.scale, weight.minimum, columns, weight.group or 0, rows)
    if isinstance(weight, Int8Weight):
        return _C.Weight(weight.codes.contiguous(), weight.scale.contiguous())
    if isinstance(weight, Int4Weight):
        minimum = None if weight.minimum is None else weight.minimum.contiguous()
        return _C.Weight(
            weight.codes.contiguous(), weight.scale.contiguous(), minimum, weight.num_columns, weight.group
        )
    assert isinstance(weight, Tensor)
    return _C.Weight(weight)


def _layer(layer: LayerWeights) -> dict[str, Any]:
    def vector(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.float().contiguous()

    return {
        "attention_norm": vector(layer.attention_norm),
        "qkv": held(layer.qkv),
        "qkv_bias": vector(layer.qkv_bias),
        "q_norm": vector(layer.q_norm),
        "k_norm": vector(layer.k_norm),
        "attention_out": held(layer.attention_out),
        "ffn_norm": vector(layer.ffn_norm),
        "gate_up": held(layer.gate_up),
        "down": held(layer.down),
        **({} if layer.router is None else {"router": held(layer.router)}),
    }
