"""Small codecs with random weights, as checkpoint directories, beside the modules of transformers that wrote
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

MIMI = {
    "num_filters": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_quantizers": 5, "upsample_groups": 16, "codebook_size": 32,
    "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "codebook_dim": 8, "sliding_window": 10,
    "vector_quantization_hidden_dimension": 8, "upsampling_ratios": [4, 3, 2], "sampling_rate": 1200,
}  # fmt: skip
ENCODEC = {
    "num_filters": 4, "hidden_size": 16, "codebook_size": 32, "upsampling_ratios": [3, 2, 4], "target_bandwidths": [2.5, 5.0],
    "sampling_rate": 6000,
}  # fmt: skip
ENCODEC_CHUNKS = ENCODEC | {
    "norm_type": "time_group_norm", "use_causal_conv": False, "normalize": True, "chunk_length_s": 0.1, "overlap": 0.01,
    "audio_channels": 2, "sampling_rate": 4800, "target_bandwidths": [4.0, 8.0],
}  # fmt: skip
DAC = {
    "encoder_hidden_size": 8, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4], "n_codebooks": 3, "codebook_size": 32,
    "sampling_rate": 8000,
}  # fmt: skip
DAC_ODD = DAC | {"downsampling_ratios": [2, 5]}
KINDS = {"mimi": MIMI, "encodec": ENCODEC, "encodec chunks": ENCODEC_CHUNKS, "dac": DAC, "dac odd": DAC_ODD}


def make_module(kind: str, changes: dict[str, Any] | None = None) -> nn.Module:
    """A module of transformers with random weights, codebooks included.

    changes None: the small sizes; {}: the published.
    """
    import transformers

    sizes = KINDS[kind] if changes is None else changes
    name = {"mimi": "Mimi", "encodec": "Encodec", "dac": "Dac"}[kind.split()[0]]
    torch.manual_seed(3)
    module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    generator = torch.Generator().manual_seed(4)
    for key, value in [*module.named_buffers(), *module.named_parameters()]:
        if key.endswith(("embed_sum", "embed")):
            value.data.normal_(0, 0.3, generator=generator)
        elif key.endswith("cluster_usage"):
            value.data.uniform_(0.5, 2, generator=generator)
        elif key.endswith("_scale.scale"):
            value.data.uniform_(0.2, 0.6, generator=generator)
        elif name == "Dac" and value.ndim > 1 and "alpha" not in key:
            value.data.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif name == "Dac" and "alpha" in key:
            value.data.uniform_(0.5, 1.5, generator=generator)
        if key == "decoder.conv2.weight":
            value.data.mul_(0.05)  # before a tanh
        elif "res_unit" in key and key.endswith("conv2.weight"):
            value.data.mul_(0.1)  # else a dozen units grow the signal until the sine of it is noise
    return module


def save(module: nn.Module, folder: Path) -> Path:
    """The module's checkpoint directory."""
    module.save_pretrained(folder)  # type: ignore[operator]
    return folder


def snac_directory(data_dir: Path, folder: Path, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """One of the golden SNACs as its own package would lay it out, and the tensors t.* of its inputs and
    outputs.
    """
    from safetensors.torch import load_file

    tensors = load_file(data_dir / "golden" / "snac_small.safetensors")
    about = json.loads((data_dir / "golden" / "snac_small.json").read_text(encoding="utf-8"))
    mine = {
        key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {key[2:]: value for key, value in mine.items() if key.startswith("w.")}, folder / "pytorch_model.bin"
    )
    (folder / "config.json").write_text(json.dumps(about[name]), encoding="utf-8")
    return folder, {key[2:]: value for key, value in mine.items() if key.startswith("t.")}
