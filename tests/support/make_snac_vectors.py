"""Writes tests/data/golden/snac_small.*: small SNACs of the original package with what they make of a sound.

Needs `pip install --no-deps snac==1.2.1 einops`. Noise is the engine's own, put in the place of the package's torch.randn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from snac import SNAC

from innervoice_kernels.speech_codec.noise import CODEC_STREAM, normals

BASE = {"sampling_rate": 8000, "encoder_dim": 16, "decoder_dim": 64, "codebook_size": 32, "codebook_dim": 8}
MODELS = {
    "plain": BASE | {"encoder_rates": [2, 4], "decoder_rates": [4, 2], "attn_window_size": None, "vq_strides": [4, 2, 1],
                     "noise": True, "depthwise": True},
    "attention": BASE | {"encoder_dim": 32, "encoder_rates": [2, 3], "decoder_rates": [3, 2], "attn_window_size": 8,
                         "vq_strides": [4, 2], "noise": True, "depthwise": True},
    "grouped off": BASE | {"encoder_rates": [2, 3], "decoder_rates": [3, 2], "attn_window_size": None, "vq_strides": [2, 1],
                           "noise": False, "depthwise": False},
}  # fmt: skip
SECONDS = 0.06


def stage_noise(stage: int, count: int) -> torch.Tensor:
    """What seed 0 gives a decoder's stage, [1, 1, count]."""
    zero = torch.zeros(1, dtype=torch.int64)
    return normals(zero, CODEC_STREAM, torch.arange(count // 4 + 1), zero + stage).flatten()[
        None, None, :count
    ]


def made(sizes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """w.*: weights under the package's names; t.*: a sound, its ids and what they decode to."""
    torch.manual_seed(5)
    module = SNAC(**sizes).eval()
    for key, value in module.named_parameters():
        if key.endswith("alpha"):
            value.data.uniform_(0.5, 1.5)
    samples = 0.3 * torch.randn(1, 1, int(SECONDS * sizes["sampling_rate"]))
    stages = iter(range(len(sizes["decoder_rates"])))
    with (
        torch.inference_mode(),
        mock.patch("torch.randn", lambda shape, **_: stage_noise(next(stages), shape[-1])),
    ):
        codes = module.encode(samples)
        sound = module.decode(codes)
    tensors = {f"w.{key}": value.clone() for key, value in module.state_dict().items()}
    tensors |= {"t.samples": samples[0, 0], "t.sound": sound[0, 0]}
    return tensors | {f"t.ids.{index}": row[0] for index, row in enumerate(codes)}


def main() -> None:
    """Write the golden vectors of SNAC."""
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, sizes in MODELS.items()
        for key, value in made(sizes).items()
    }
    folder = Path(__file__).resolve().parent.parent / "data" / "golden"
    save_file(tensors, folder / "snac_small.safetensors")
    (folder / "snac_small.json").write_text(json.dumps(MODELS, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
