"""The families of residual-VQ codecs: each reads its config and loads its halves, which make streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from typing import Any

from innervoice.checkpoint.codec_readers import read_codec_json, read_dac, read_encodec, read_mimi, read_snac
from innervoice.checkpoint.codecs import ResidualConfig
from innervoice.codec.residual_vq.dac import load_dac_decoder, load_dac_encoder
from innervoice.codec.residual_vq.encodec import load_encodec_decoder, load_encodec_encoder
from innervoice.codec.residual_vq.mimi import load_mimi_decoder, load_mimi_encoder
from innervoice.codec.residual_vq.slot_stream import DecoderHalf, EncoderHalf
from innervoice.codec.residual_vq.weights import CodecWeights


@dataclass(frozen=True)
class CodecFamily:
    """A kind of codec, by the model_type of its config.json.

    A loader gives None where the checkpoint lacks that half. Reader and loaders raise ValueError.
    """

    model_type: str
    read_config: Callable[[Mapping[str, Any], str | PathLike[str]], ResidualConfig]
    load_encoder: Callable[[CodecWeights, Any], EncoderHalf | None]
    load_decoder: Callable[[CodecWeights, Any], DecoderHalf | None]


_FAMILIES = {
    family.model_type: family
    for family in (
        CodecFamily("mimi", read_mimi, load_mimi_encoder, load_mimi_decoder),
        CodecFamily("encodec", read_encodec, load_encodec_encoder, load_encodec_decoder),
        CodecFamily("dac", read_dac, load_dac_encoder, load_dac_decoder),
        CodecFamily("snac", read_snac, load_dac_encoder, load_dac_decoder),
    )
}


def register_codec_family(family: CodecFamily) -> Callable[[], None]:
    """Let `Codec.from_pretrained` load checkpoints of that model_type.

    The result takes that back; called again it does nothing. Raises ValueError for what is no family and for
    a model_type that has one.
    """
    if not isinstance(family, CodecFamily):
        raise ValueError(f"a codec family is {family!r}: pass a CodecFamily")
    if family.model_type in _FAMILIES:
        raise ValueError(f"the codec family {family.model_type!r} exists already: use another model_type")
    _FAMILIES[family.model_type] = family
    undo = ExitStack()
    undo.callback(_FAMILIES.pop, family.model_type)
    return undo.close


def read_codec(directory: str | PathLike[str]) -> tuple[CodecFamily, ResidualConfig]:
    """The family of a codec's directory and its config.

    Raises FileNotFoundError, ValueError for another model or settings.
    """
    model_type, data, source = read_codec_json(directory)
    family = _FAMILIES.get(model_type or "")
    if family is None:
        raise ValueError(f"{source}: model_type is {model_type!r}, expected a codec: {', '.join(_FAMILIES)}")
    return family, family.read_config(data, source)
