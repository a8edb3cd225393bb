"""Speech codes -> mel frames: encoder, length regulator, and an ODE from noise to mel by ten
Euler steps (CosyVoice's flow).

`Flow` takes one row; its parts take several. The ODE's state stays float32; the networks run
in the dtype of the weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.speech_decoder import MEL_HOP, MEL_RATE, FlowConfig
from innervoice.codec.glm_voice.flow_choice import choice_for
from innervoice.codec.glm_voice.flow_encoder import FlowEncoder, LengthRegulator
from innervoice.codec.glm_voice.flow_estimator import FlowEstimator
from innervoice.codec.glm_voice.flow_graphs import GivenParts, StepGraphs
from innervoice.codec.layers import Tensors, affine, linear
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.speech_codec.noise import frame_noise
from innervoice_kernels.streams import Shared

NOISE_SEED = 42
DEFAULT_STEPS = 10
# What a step calls, and whether it has native code: a graph keeps the kernels that it was captured with.
_OPS_OF_A_STEP = {"flow_block": False, "flow_stage": True, "frame_conv": True, "group_norm_mish": True}


def num_frames(num_codes: int, token_rate: float) -> int:
    """Mel frames that so many codes make: trunc(n / token_rate * 22050 / 256), in
    float32 as the original has it.
    """
    seconds = np.float32(num_codes) / np.float32(token_rate)
    return int(seconds * np.float32(MEL_RATE) / np.float32(MEL_HOP))


def step_times(steps: int) -> Tensor:
    """t_0 ... t_steps, [steps + 1] float32: 1 - cos(pi/2 * k/steps)."""
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu") * (math.pi / 2))


def noise_generator() -> torch.Generator:
    """The generator of a call: the flow's noise comes first, the vocoder's phases and noise continue it."""
    return torch.Generator("cpu").manual_seed(NOISE_SEED)


class Flow:
    """The flow with its weights; tensors are named as in flow.pt.

    graphs: where the solver's steps are replayed from, on a GPU; None: launched one by one. choice: the same, and graphs
    whose transformers are torch's.
    """

    def __init__(self, config: FlowConfig, tensors: Tensors) -> None:
        self.config = config
        self.is_guided = config.guidance != 0
        self.embedding = tensors["input_embedding.weight"]
        self._speaker = affine(tensors, "spk_embed_affine_layer")
        self.encoder = FlowEncoder(config.encoder, tensors)
        self.project = affine(tensors, "encoder_proj")
        self.regulator = LengthRegulator(config.num_regulator_layers, tensors)
        self.estimator = FlowEstimator(config.estimator, tensors)
        self._shifts = {DEFAULT_STEPS: self._time_shifts(DEFAULT_STEPS)}
        device = self.embedding.device
        self.choice = choice_for(lambda: StepGraphs(self, device), device)
        self.graphs = None if self.choice is None else self.choice.own

    def __call__(
        self,
        codes: Tensor,
        prompt_codes: Tensor,
        prompt_mel: Tensor,
        *,
        generator: torch.Generator | None,
        speaker: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
    ) -> Tensor:
        """codes [n], prompt_codes [p] int64; prompt_mel [1, C, P]; speaker [1, 192] -> mel
        [1, C, F(p + n) - P] float32.

        generator draws the noise on the CPU, [1, C, F(p + n)]; None: noise by absolute frame, as `steady`
        streaming has it. Raises ValueError when steps is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}: it must be 1 or more")
        mu = self.mu(torch.cat([prompt_codes, codes]))
        cond = torch.zeros_like(mu)
        cond[..., : prompt_mel.shape[-1]] = prompt_mel
        noise = (
            _noise_by_frame(mu)
            if generator is None
            else torch.randn(mu.shape, generator=generator, dtype=torch.float32, device="cpu").to(mu.device)
        )
        return self.solve(noise, mu, self.speaker_vector(speaker), cond, steps)[..., prompt_mel.shape[-1] :]

    def mu(self, codes: Tensor) -> Tensor:
        """codes [n] -> the flow's condition [1, C, F(n)] float32."""
        states = linear(self.encoder(F.embedding(codes, self.embedding)[None]), self.project)  # [1, n, C]
        return self.regulator(states, num_frames(codes.shape[0], self.config.token_rate)).float()

    def speaker_vector(self, speaker: Tensor | None) -> Tensor:
        """An x-vector [1, 192] -> [1, C] float32.

        None is the zero vector, which leaves the layer's bias: the shipped voice.
        """
        weight = self._speaker.weight
        if speaker is None:
            speaker = torch.zeros(1, weight.shape[1], dtype=torch.float32, device="cpu")
        if tuple(speaker.shape) != (1, weight.shape[1]):
            raise ValueError(
                f"the speaker embedding has shape {list(speaker.shape)}, expected {[1, weight.shape[1]]}"
            )
        unit = F.normalize(speaker.float(), dim=1).to(weight)
        return linear(unit, self._speaker).float()

    def solve(
        self,
        x: Tensor,
        mu: Tensor,
        speaker: Tensor,
        cond: Tensor,
        steps: int = DEFAULT_STEPS,
        n: Tensor | None = None,
    ) -> Tensor:
        """Integrate from noise x [B, C, F] at t = 0 to mel at t = 1; guided and unguided
        branches run as one batch of 2 B. Without guidance (`inference_cfg_rate: 0`) there is one branch, of B.

        mu, cond [B, C, F]; speaker [B, C]; n [B]: true lengths, None: all rows have F frames.
        """
        dtype = self.embedding.dtype
        given, lengths = self.given(mu.to(dtype), speaker.to(dtype), cond.to(dtype), n)
        shifts = self.time_shifts(steps)
        times = step_times(steps).tolist()
        x = x.transpose(1, 2)
        replayed = self._replayed(x, given, lengths, shifts, times)
        if replayed is not None:
            return replayed.transpose(1, 2)
        for k in range(steps):
            x = self.step(x, given, lengths, [shift[k] for shift in shifts], times[k + 1] - times[k])
        return x.transpose(1, 2)

    def _replayed(
        self, x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor], times: list[float]
    ) -> Tensor | None:
        """All steps from graphs; None: they are launched one by one."""

        def solve(graphs: StepGraphs) -> Tensor | None:
            choices = tuple(choose(op, x, has_native=native) for op, native in _OPS_OF_A_STEP.items())
            if TRITON not in choices:  # plain torch alone is launched as it stands
                return None
            return graphs.solve(x, given, lengths, shifts, times, choices)

        if self.graphs is None:
            return None
        if self.choice is None or self.graphs is not self.choice.own:
            return solve(self.graphs)
        return self.choice.solve(x.shape[0], x.shape[1], solve)

    def given(
        self, mu: Tensor, speaker: Tensor, cond: Tensor, n: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """The estimator's condition, the same in all steps, and the true lengths: of all branches, the unguided one's
        condition is zeros.
        """
        conv, skip = self.estimator.condition(mu, speaker, cond, n)
        if not self.is_guided:
            return (conv, skip), n
        both = torch.cat([conv, torch.zeros_like(conv)]), torch.cat([skip, torch.zeros_like(skip)])
        return both, None if n is None else torch.cat([n, n])

    def step(
        self,
        x: Tensor,
        given: tuple[Tensor, Tensor],
        lengths: Tensor | None,
        shifts: list[Tensor],
        dt: float | Tensor,
    ) -> Tensor:
        """One Euler step of length dt: x [B, F, C] float32 -> x.

        given: of all branches; lengths [2 B], or [B] without guidance; shifts [C'] a stage.
        """
        dtype = self.embedding.dtype
        if not self.is_guided:
            return x + dt * self.estimator.velocity(x.to(dtype), given, shifts, lengths).float()
        both = torch.cat([x, x]).to(dtype)
        guided, unguided = self.estimator.velocity(both, given, shifts, lengths).float().chunk(2)
        guidance = self.config.guidance
        return x + dt * ((1 + guidance) * guided - guidance * unguided)

    def time_shifts(self, steps: int) -> list[Tensor]:
        """The time embedding of each stage at each solver step, computed once for a number of steps."""
        if steps not in self._shifts:
            self._shifts[steps] = self._time_shifts(steps)
        return self._shifts[steps].get()[0]

    def _time_shifts(self, steps: int) -> Shared[list[Tensor]]:
        device = self.embedding.device
        return Shared(self.estimator.time_shifts(step_times(steps)[:-1].to(device)), device)


def _noise_by_frame(mu: Tensor) -> Tensor:
    rows, channels, frames = mu.shape
    seed = torch.full((rows,), NOISE_SEED, device=mu.device, dtype=torch.int64)
    return frame_noise(
        seed, torch.arange(frames, device=mu.device, dtype=torch.int64).expand(rows, -1), channels
    )
