"""Speech codes -> sound: a glm-4-voice-decoder directory (config.yaml, flow.pt,
hift.pt) with its two ways to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from innervoice.checkpoint.decoder_tensors import flow_shapes, hift_shapes, tensor_bytes
from innervoice.checkpoint.pickle_file import PickleFile
from innervoice.checkpoint.safetensors import DummyTensors, TensorSource
from innervoice.checkpoint.speech_decoder import DecoderConfig, read_decoder_config
from innervoice.codec.glm_voice.chunks import SteadySettings, speech_format
from innervoice.codec.glm_voice.flow import DEFAULT_STEPS, NOISE_SEED, Flow, noise_generator
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.reference_stream import ReferenceState, ReferenceStream
from innervoice.codec.glm_voice.steady import SteadyOutput
from innervoice.codec.layers import load_tensors
from innervoice.codec.modes import own_modes
from innervoice.codec.slot_output import check_codes
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

Noise = Literal["call", "frame"]


class SpeechDecoder:
    """Codes to samples, one reply at a time, with an explicit state from chunk to chunk."""

    def __init__(
        self,
        config: DecoderConfig,
        flow: Flow,
        hift: Hift,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        vocoder_noise: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self.config = config
        self.format = speech_format(config.flow, config.hift)
        self.vocab_size = self.format.num_codes
        self.sample_rate = self.format.sample_rate
        self.codes_per_s = self.format.codes_per_s
        self.num_bytes = tensor_bytes(config, dtype.itemsize)
        self._flow = flow
        self._hift = hift
        self._noise = vocoder_noise
        self._device = device
        self._stream = ReferenceStream(flow, hift, vocoder_noise, device)
        self._tracer = tracer or Tracer()

    @classmethod
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        load_format: Literal["auto", "dummy"] = "auto",
        vocoder_noise: bool = True,
        tracer: Tracer | None = None,
    ) -> SpeechDecoder:
        """Load a checkpoint directory; "dummy" takes random weights and needs config.yaml alone.

        vocoder_noise False: zero phases and no noise in the source. Raises FileNotFoundError, ValueError.
        """
        root, tracer = Path(directory), tracer or Tracer()
        config = read_decoder_config(root / "config.yaml")
        flow_names, hift_names = flow_shapes(config.flow), hift_shapes(config.hift)
        with own_modes(), tracer.span("load speech decoder"):
            flow_source = _source(root / "flow.pt", flow_names, load_format)
            hift_source = _source(root / "hift.pt", hift_names, load_format)
            flow = Flow(config.flow, load_tensors(flow_source, flow_names, dtype, device))
            hift = Hift(config.hift, load_tensors(hift_source, hift_names, torch.float32), dtype, device)
        return cls(config, flow, hift, device=device, dtype=dtype, vocoder_noise=vocoder_noise, tracer=tracer)

    @own_modes()
    def decode(
        self,
        codes: Sequence[int],
        *,
        speaker: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
        noise: Noise = "call",
    ) -> Samples:
        """All codes in one call; none make 0 samples.

        speaker: an x-vector [1, 192]. Raises ValueError: a code out of range.

        noise: "call" draws it by a generator, as the original; "frame" by absolute frame and
        sample, as `steady` streaming.
        """
        checked = self.check(codes)
        if not checked:
            return np.zeros(0, np.float32)
        generator = noise_generator() if noise == "call" else None
        mel = self._mel(checked, generator, speaker, steps)
        if generator is None:
            samples = self._hift.render(
                mel, self._hift.steady_source(mel, NOISE_SEED if self._noise else None)
            )
        else:
            samples, _ = self._hift(mel, generator=generator if self._noise else None)
        return samples[0].cpu().numpy()

    @own_modes()
    def mel(
        self,
        codes: Sequence[int],
        *,
        speaker: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
        noise: Noise = "call",
    ) -> Tensor:
        """The mel frames that `decode` makes sound of, [1, C, F] float32. Raises ValueError."""
        return self._mel(self.check(codes), noise_generator() if noise == "call" else None, speaker, steps)

    def steady(
        self, settings: SteadySettings | None = None, *, num_slots: int = 64, rows_at_once: int | None = None
    ) -> SteadyOutput:
        """`steady` streaming over this decoder's weights; rows_at_once None: 1 on a CPU, all elsewhere.

        Raises ValueError.
        """
        if rows_at_once is None and torch.device(self._device).type == "cpu":
            rows_at_once = 1
        return SteadyOutput(
            self._flow,
            self._hift,
            settings,
            num_slots=num_slots,
            rows_at_once=rows_at_once,
            noise=self._noise,
            device=self._device,
            tracer=self._tracer,
        )

    def init_state(self) -> ReferenceState:
        """The state of a reply before its first chunk."""
        return self._stream.init_state()

    @own_modes()
    def push(
        self, state: ReferenceState, codes: Sequence[int], final: bool
    ) -> tuple[Samples, ReferenceState]:
        """One chunk as the original streams it: its samples and the next state.

        A final push of no codes is a flush.

        Raises ValueError for a code out of range, and for a chunk that is not final and
        makes less than the overlap.
        """
        checked = self.check(codes)
        if not checked:
            return (self.flush(state), self.init_state()) if final else (np.zeros(0, np.float32), state)
        with self._tracer.span("decode chunk", codes=len(checked), prompt=len(state.codes), final=final):
            return self._stream.push(state, checked, final)

    @own_modes()
    def flush(self, state: ReferenceState) -> Samples:
        """End a reply that has no pending codes: the rest of its audio (none before the first chunk)."""
        with self._tracer.span("flush speech"):
            return self._stream.flush(state)

    def check(self, codes: Sequence[int]) -> tuple[int, ...]:
        """The codes as plain integers. Raises ValueError for one out of range."""
        return check_codes(codes, self.vocab_size)

    def _mel(
        self, codes: tuple[int, ...], generator: torch.Generator | None, speaker: Tensor | None, steps: int
    ) -> Tensor:
        if not codes:
            raise ValueError("no speech codes: mel frames need one at least")
        state = self.init_state()
        tokens = torch.tensor(codes, device=self._device, dtype=torch.int64)
        with self._tracer.span("decode reply", codes=len(codes)):
            return self._flow(
                tokens, tokens[:0], state.mel, generator=generator, speaker=speaker, steps=steps
            )


def _source(path: Path, shapes: Mapping[str, tuple[int, ...]], load_format: str) -> TensorSource:
    if load_format == "dummy":
        return DummyTensors()
    if load_format != "auto":
        raise ValueError(f"load_format is {load_format!r}: it must be 'auto' or 'dummy'")
    file = PickleFile(path)
    file.refuse_others(set(shapes))
    return file
