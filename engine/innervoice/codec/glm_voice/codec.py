"""GLM-4-Voice's codec behind the engine's seam: its directories, its bytes, its two halves.

The networks are imported when they are loaded: a model is refused, and one without speech is run, without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from innervoice.checkpoint import decoder_tensors, speech_tokenizer
from innervoice.checkpoint.model_config import dtype_bytes
from innervoice.checkpoint.speech_decoder import DecoderConfig, read_decoder_config
from innervoice.checkpoint.speech_tokenizer import SpeechTokenizerConfig, read_speech_tokenizer_config
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.speech_codec import ChunkMode, CodecLoad, SpeechOutput
from innervoice.telemetry.trace import Tracer

if TYPE_CHECKING:
    from innervoice.codec.glm_voice.decoder import SpeechDecoder
    from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class GlmVoiceCodec:
    """A `SpeechCodec`: directories of a glm-4-voice-tokenizer and a glm-4-voice-decoder with
    their configs, or one of them.
    """

    tokenizer_dir: Path | None
    decoder_dir: Path | None
    tokenizer: SpeechTokenizerConfig | None
    decoder: DecoderConfig | None

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        if self.tokenizer is not None:
            return self.tokenizer.vocab_size
        assert self.decoder is not None, "a codec has a half"
        return self.decoder.flow.vocab_size

    def encoder_bytes(self, dtype: str) -> int:
        """Bytes of the speech tokenizer's weights."""
        return 0 if self.tokenizer is None else speech_tokenizer.tensor_bytes(self.tokenizer, dtype)

    def output_bytes(self, dtype: str) -> int:
        """Bytes of flow and vocoder."""
        return 0 if self.decoder is None else decoder_tensors.tensor_bytes(self.decoder, dtype_bytes(dtype))

    def slot_bytes(self, dtype: str, streaming: object) -> int:
        """Bytes of a slot of `steady` streaming; other streaming keeps no slots."""
        from innervoice.codec.glm_voice.slot_bytes import slot_bytes

        settings = SteadySettings() if streaming == "steady" else streaming
        if self.decoder is None or not isinstance(settings, SteadySettings):
            return 0
        return slot_bytes(self.decoder, dtype_bytes(dtype), settings)

    def load_encoder(self, how: CodecLoad) -> SpeechTokenizer | None:
        """The speech tokenizer."""
        from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer

        if self.tokenizer_dir is None:
            return None
        return SpeechTokenizer.from_pretrained(self.tokenizer_dir, **_common(how))

    def load_output(self, how: CodecLoad, streaming: object, num_slots: int) -> SpeechOutput | None:
        """The decoder in one of its streaming modes."""
        from innervoice.codec.glm_voice.decoder import SpeechDecoder

        if self.decoder_dir is None:
            return None
        decoder = SpeechDecoder.from_pretrained(self.decoder_dir, vocoder_noise=how.noise, **_common(how))
        return speech_output(decoder, streaming, num_slots=num_slots, tracer=how.tracer)


def read_glm_voice_codec(encoder: Path | None, decoder: Path | None) -> GlmVoiceCodec:
    """Read the config files of both halves.

    Raises FileNotFoundError, and ValueError when they do not belong together.
    """
    heard = None if encoder is None else read_speech_tokenizer_config(encoder)
    spoken = None if decoder is None else read_decoder_config(decoder / "config.yaml")
    if heard is not None and spoken is not None and heard.vocab_size != spoken.flow.vocab_size:
        raise ValueError(
            f"{encoder} has {heard.vocab_size} speech codes and {decoder} {spoken.flow.vocab_size}: "
            "they do not belong together"
        )
    return GlmVoiceCodec(encoder, decoder, heard, spoken)


def speech_output(
    decoder: SpeechDecoder,
    streaming: object = "steady",
    *,
    num_slots: int = 64,
    tracer: Tracer | None = None,
) -> SpeechOutput:
    """The output of a decoder in a streaming mode, or in `steady` mode with other settings.

    Raises ValueError.
    """
    if streaming == "steady":
        return decoder.steady(num_slots=num_slots)
    if isinstance(streaming, SteadySettings):
        return decoder.steady(streaming, num_slots=num_slots)
    if streaming in get_args(ChunkMode):
        from innervoice.codec.glm_voice.chunked import ChunkedOutput

        return ChunkedOutput(decoder, cast(ChunkMode, streaming), num_slots=num_slots, tracer=tracer)
    raise ValueError(f"streaming mode {streaming!r} is not known: use 'steady', 'offline' or 'reference'")


def _common(how: CodecLoad) -> dict[str, Any]:
    import torch

    return {
        "device": how.device,
        "dtype": getattr(torch, how.dtype),
        "load_format": how.load_format,
        "tracer": how.tracer,
    }
