"""The config files of a model, and what of them holds for all its requests; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization, as_quantization, read_quantization
from innervoice.codec.registry import read_speech_codec
from innervoice.codec.speech_codec import SpeechCodec
from innervoice.model.families import Family, family_of

DEFAULT_MODEL_LEN = 8192


@dataclass(frozen=True)
class Configs:
    """The config files of a model, read and checked against each other.

    quantization: of the weights in the file. encoder: by which the model hears recordings as embedding rows.
    """

    family: Family
    model: ModelConfig
    codec: SpeechCodec | None
    quantization: Quantization | None = None
    encoder: AudioEncoderConfig | None = None

    @property
    def hears(self) -> bool:
        """Whether recordings are understood, as codes or as rows."""
        return self.encoder is not None or (
            self.codec is not None and self.codec.encoder_bytes("float32") > 0
        )

    @property
    def num_codes(self) -> int | None:
        """Size of the speech codebook, None without speech."""
        return None if self.codec is None else self.codec.num_codes


def read_configs(paths: CheckpointPaths) -> Configs:
    """Read the config files.

    Raises FileNotFoundError, and ValueError when one is not supported or the parts do not match.
    """
    source = paths.model / "config.json"
    data, quantization = read_quantization(read_json(source), source)
    family = family_of(data, source)
    model, encoder = family.read_config(data, source), family.read_audio_encoder(data, source)
    if encoder is not None and paths.speech_tokenizer is not None:
        raise ValueError(
            f"{source}: this model hears by an encoder of its own and {paths.speech_tokenizer} is a speech tokenizer: "
            "leave speech_tokenizer out"
        )
    if encoder is not None and encoder.output_size != model.hidden_size:
        raise ValueError(
            f"{source}: output_dim of audio_config is {encoder.output_size}, and hidden_size of the language model is "
            f"{model.hidden_size}: they must be the same"
        )
    codec = read_speech_codec(paths.speech_tokenizer, paths.decoder)
    return Configs(family, model, codec, quantization, encoder)


def longest_sequence(wanted: int | None, model: ModelConfig) -> int:
    """Tokens that a session may have. Raises ValueError for more than the model takes."""
    if wanted is None:
        return min(model.max_position, DEFAULT_MODEL_LEN)
    if not 1 <= wanted <= model.max_position:
        raise ValueError(f"max_model_len is {wanted}: the model takes 1 to {model.max_position} tokens")
    return wanted


def quantization_of(
    paths: CheckpointPaths, configs: Configs, wanted: str | Quantization | None
) -> Quantization | None:
    """The format that weights will have. Raises ValueError where the file has another than is wanted."""
    asked = as_quantization(wanted)
    if configs.quantization is None or asked in (None, configs.quantization):
        return configs.quantization or asked
    raise ValueError(
        f"{paths.model} is quantised already, as {configs.quantization}, not {asked}: leave quantization out"
    )
