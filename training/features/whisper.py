"""Whisper tiny.en as a WhisperVQ encoder, in plain torch: causal convolutions, attention in blocks, states
before the codes.

Whisper's symmetric convolutions are exactly the causal ones a position (20 ms) later: the weights stay, the
table of positions moves by one row. Weights are rounded to float16 first, as they are shipped.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.features.frames import TOKEN_SAMPLES
from training.features.mel import whisper_log_mel

WIDTH = 384
NUM_HEADS = 6
FFN_WIDTH = 1536
NUM_LAYERS = 4
MAX_POSITIONS = 500  # of 1500: a recording is cut into pieces of 10 s, which saves 0.8 MB
BLOCK = 200  # positions that see one another: 4 s
POOLING = 4  # positions a token
POSITION_SAMPLES = 320
PIECE_SAMPLES = MAX_POSITIONS * POSITION_SAMPLES

Weights = dict[str, torch.Tensor]
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by CTranslate2's numbers


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 `model.bin` by name."""
    data = path.read_bytes()
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize("<" + form)
        return int(value)

    def text() -> str:
        nonlocal place
        length = number("H")
        value = data[place : place + length].rstrip(b"\0").decode()
        place += length
        return value

    number("I")  # version of the format
    text()  # name of the model's specification
    number("I")  # its revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(_DTYPES[number("B")])
        size = number("I")
        tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size
    return tensors


def encoder_weights(path: Path, num_layers: int = NUM_LAYERS) -> Weights:
    """Return the encoder's weights under the names of a WhisperVQ checkpoint, as float32 of float16's
    values.
    """
    raw = {
        name.removeprefix("encoder/"): torch.tensor(np.array(value, np.float32)).half().float()
        for name, value in read_ctranslate2(path).items()
        if name.startswith("encoder/")
    }
    weights = {
        f"{conv}.{part}": raw[f"{conv}/{part}"] for conv in ("conv1", "conv2") for part in ("weight", "bias")
    }
    places = raw["position_encodings/encodings"]
    weights["embed_positions.weight"] = torch.cat([places[:1], places[: MAX_POSITIONS - 1]])
    for layer in range(num_layers):
        weights |= _layer_weights(raw, layer)
    return weights


def _layer_weights(raw: Weights, layer: int) -> Weights:
    source, name = f"layer_{layer}", f"layers.{layer}"
    found = {}
    norms = (("self_attention/layer_norm", "self_attn_layer_norm"), ("ffn/layer_norm", "final_layer_norm"))
    for old, new in norms:
        found[f"{name}.{new}.weight"] = raw[f"{source}/{old}/gamma"]
        found[f"{name}.{new}.bias"] = raw[f"{source}/{old}/beta"]
    weight = raw[f"{source}/self_attention/linear_0/weight"].chunk(3)
    bias = raw[f"{source}/self_attention/linear_0/bias"].chunk(3)
    for part, one_weight, one_bias in zip("qkv", weight, bias, strict=True):
        found[f"{name}.self_attn.{part}_proj.weight"] = one_weight.contiguous()
        if part != "k":  # Whisper's keys have no bias
            found[f"{name}.self_attn.{part}_proj.bias"] = one_bias.contiguous()
    linears = (
        ("self_attention/linear_1", "self_attn.out_proj"),
        ("ffn/linear_0", "fc1"),
        ("ffn/linear_1", "fc2"),
    )
    for old, new in linears:
        found[f"{name}.{new}.weight"] = raw[f"{source}/{old}/weight"]
        found[f"{name}.{new}.bias"] = raw[f"{source}/{old}/bias"]
    return found


def visible(num_positions: int, num_real: int) -> torch.Tensor:
    """Return which positions each one sees: all before its block's end that are no padding. [T, T] of bool"""
    places = torch.arange(num_positions)
    block_end = (places // BLOCK + 1) * BLOCK
    return (places[None] < block_end[:, None]) & (places[None] < num_real)


@torch.inference_mode()
def pooled_states(weights: Weights, audio: np.ndarray, num_layers: int = NUM_LAYERS) -> torch.Tensor:
    """Return the mean state of each token of a recording at 16 kHz, piece after piece of 10 s. [n] ->
    [tokens, 384]
    """
    pieces = torch.from_numpy(np.asarray(audio, np.float32)).split(PIECE_SAMPLES)
    return torch.cat([_piece_states(weights, piece, num_layers) for piece in pieces])


def _piece_states(weights: Weights, audio: torch.Tensor, num_layers: int) -> torch.Tensor:
    num = -(-len(audio) // TOKEN_SAMPLES)
    x = whisper_log_mel(F.pad(audio, (0, num * TOKEN_SAMPLES - len(audio))))[None]  # [1, 80, F]
    x = F.gelu(F.conv1d(F.pad(x, (2, 0)), weights["conv1.weight"], weights["conv1.bias"]))
    x = F.gelu(F.conv1d(F.pad(x, (2, 0)), weights["conv2.weight"], weights["conv2.bias"], stride=2))
    x = x[0].T + weights["embed_positions.weight"][: x.shape[2]]
    mask = visible(len(x), -(-len(audio) // POSITION_SAMPLES))
    for layer in range(num_layers):
        x = _layer(weights, f"layers.{layer}", x, mask)
    return x.unflatten(0, (num, POOLING)).mean(1)


def _layer(weights: Weights, name: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    normed = _norm(weights, f"{name}.self_attn_layer_norm", x)
    heads = [
        _linear(weights, f"{name}.self_attn.{part}_proj", normed)
        .unflatten(1, (NUM_HEADS, -1))
        .transpose(0, 1)
        for part in "qkv"
    ]
    seen = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(0, 1).flatten(1)
    x = x + _linear(weights, f"{name}.self_attn.out_proj", seen)
    hidden = F.gelu(_linear(weights, f"{name}.fc1", _norm(weights, f"{name}.final_layer_norm", x)))
    return x + _linear(weights, f"{name}.fc2", hidden)


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])
