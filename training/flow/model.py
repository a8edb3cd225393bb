"""The flow as a regression inside the format of flow matching.

The estimator's weights for the noise are zero, so that it maps mu to the mel at any time; `export` multiplies
its output by `SCALE`, and the solver, which adds it to noise of variance 1, is left with noise of 1 / SCALE of
the mel's deviation.
"""

from __future__ import annotations

import torch
from torch import nn

from training.features.frames import num_frames
from training.features.mel import NUM_MELS
from training.flow.encoder import NUM_CODES, WIDTH, Encoder, Regulator
from training.flow.estimator import Estimator

SPEAKER_WIDTH = 192
SCALE = 20.0
# The weights that meet the noise: the first 80 input channels of these two convolutions stay zero.
NOISE_WEIGHTS = ("block1.block.0", "res_conv")


class Decoder(nn.Module):
    """The estimator, under the name it has in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.estimator = Estimator()


class Flow(nn.Module):
    """Codes to mel."""

    def __init__(self) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(NUM_CODES, WIDTH)
        self.spk_embed_affine_layer = nn.Linear(SPEAKER_WIDTH, NUM_MELS)
        self.encoder = Encoder()
        self.encoder_proj = nn.Linear(WIDTH, NUM_MELS)
        self.length_regulator = Regulator()
        self.decoder = Decoder()
        self.clear_noise_weights()

    def clear_noise_weights(self) -> None:
        """Set to zero what the estimator makes of noise."""
        first = self.decoder.estimator.down_blocks[0][0]
        with torch.no_grad():
            for name in NOISE_WEIGHTS:
                first.get_submodule(name).weight[:, :NUM_MELS] = 0

    def token_rate_parameters(self) -> list[nn.Parameter]:
        """Return what stage 1 trains: everything but the estimator."""
        return [value for name, value in self.named_parameters() if not name.startswith("decoder")]

    def mu(self, codes: torch.Tensor) -> torch.Tensor:
        """The encoder's guess of the normalised mel. [B, N] -> [B, 80, F]"""
        states = self.encoder_proj(self.encoder(self.input_embedding(codes)))
        return self.length_regulator(states, num_frames(codes.shape[1]))

    def regress(self, mu: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The estimator's mel from the encoder's. [B, 80, F], [B] -> [B, 80, F]"""
        nothing = torch.zeros_like(mu)
        speaker = self.spk_embed_affine_layer.bias[None].expand(len(mu), -1)
        return self.decoder.estimator(nothing, mu, speaker, nothing, time)

    @torch.no_grad()
    def mel(self, codes: torch.Tensor) -> torch.Tensor:
        """The normalised mel of codes. [N] -> [80, F]"""
        return self.regress(self.mu(codes[None]), torch.zeros(1))[0]
