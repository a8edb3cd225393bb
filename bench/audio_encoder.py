"""The audio encoder of Qwen3-Omni-30B-A3B on a CPU against transformers' own, in turns, with random weights of the shipped sizes.

One recording of 10 s, and eight in one call. Beside the ratio stand the share of the time that products and convolutions take,
the operations a second of the whole, and those of one large product alone, which is what torch reaches at best; a record is
invalid when that product moved.

--without-halves measures what runs on a processor without products of bfloat16, on any: matrices in bfloat16, native products
in float32 with AVX2. The peer is then torch as it is there with ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from bench.record import MOST_MOVED, Record, cpu_facts, device_name, interleaved, parser, report
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from innervoice.checkpoint.audio_encoder import (
    CHUNK_FRAMES,
    AudioEncoderConfig,
    encoder_shapes,
    read_audio_encoder_config,
)
from innervoice.codec.audio_encoder import AudioEncoder
from innervoice_kernels import _C

SIZES: dict[str, Any] = {
    "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "output_dim": 2048, "downsample_hidden_size": 480, "n_window": 50, "n_window_infer": 800,
}  # fmt: skip
SMALL = SIZES | {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128} | {
    "output_dim": 64, "downsample_hidden_size": 16,
}  # fmt: skip
FRAMES = 1000
CHUNK = CHUNK_FRAMES["qwen3_omni"]
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::mkldnn_convolution", "aten::_slow_conv2d_forward")
Encode = Callable[[Sequence[Tensor]], Tensor]


def drawn(config: AudioEncoderConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by name, as wide as trained ones."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in encoder_shapes(config).items():
        spread = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        is_gain = len(shape) == 1 and name.endswith("weight")
        made[name] = (torch.randn(shape, generator=generator) * spread + float(is_gain)).to(dtype)
    return made


def theirs(sizes: dict[str, Any], tensors: dict[str, Tensor]) -> Encode:
    """transformers' encoder over the same tensors."""
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    config = configs.Qwen3OmniMoeAudioEncoderConfig(**sizes)
    with torch.device("meta"):
        encoder = models.Qwen3OmniMoeAudioEncoder(config)
    encoder.load_state_dict(tensors, assign=True)
    places = type(encoder.positional_embedding)
    encoder.positional_embedding = places(config.max_source_positions, config.d_model)
    dtype = tensors["ln_post.weight"].dtype

    def encode(mels: Sequence[Tensor]) -> Tensor:
        lens = torch.tensor([mel.shape[1] for mel in mels])
        made: Tensor = encoder(torch.cat(list(mels), 1).to(dtype), feature_lens=lens).last_hidden_state
        return made

    return encode


def operations(config: AudioEncoderConfig, num_chunks: int) -> int:
    """Multiplications and additions of products and convolutions over whole chunks, without those of attention."""
    columns, channels = num_chunks * config.num_columns(CHUNK), config.stem_channels
    matrices = {name: shape for name, shape in encoder_shapes(config).items() if len(shape) == 2}
    total = 2 * columns * sum(math.prod(shape) for shape in matrices.values())
    bins, steps, inputs = config.num_mel_bins, CHUNK, 1
    for _ in range(3):
        bins, steps = -(-bins // 2), -(-steps // 2)
        total += 2 * num_chunks * bins * steps * channels * inputs * 9
        inputs = channels
    return total


def share_of_products(run: Callable[[], object]) -> float:
    """The part of a run's time that products and convolutions take, attention's own left out."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    parts = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(parts.get(name, 0.0) for name in PRODUCTS) / sum(parts.values())


def speeds(
    dtype: torch.dtype, counts: Sequence[int], *, quick: bool, without_halves: bool, threads: int
) -> Iterator[Record]:
    """One record for each number of recordings."""
    sizes = SMALL if quick else SIZES
    config = read_audio_encoder_config(sizes, "bench", "qwen3_omni")
    tensors = drawn(config, dtype)
    ours, peer = AudioEncoder(config, tensors), theirs(sizes, tensors)
    generator = torch.Generator().manual_seed(1)
    mels = [torch.randn(config.num_mel_bins, FRAMES, generator=generator) for _ in range(max(counts))]
    x, w = (torch.randn(n, config.width, generator=generator).to(dtype) for n in (1024, config.ffn_size))
    off = (torch.cat(ours.encode_features(mels[:2])).float() - peer(mels[:2]).float()).abs().max().item()
    assert off < (1e-4 if dtype == torch.float32 else 0.05), f"the encoders differ by {off}"
    kind = "bfloat16, multiplied in float32" if without_halves else str(dtype).removeprefix("torch.")
    clock = time.process_time if threads == 1 else time.perf_counter
    for count in counts:
        run = partial(ours.encode_features, mels[:count])
        runs: dict[str, Callable[[], object]] = {"ours": run, "theirs": partial(peer, mels[:count])}
        runs["product"] = partial(F.linear, x, w)
        many = count > 1
        times = interleaved(runs, rounds=2 if quick or many else 4, warmup=0 if many else 1, clock=clock)
        moved = times["product"].p90 / times["product"].p10 - 1
        flops = operations(config, count * FRAMES // CHUNK)
        yield Record.of(
            "audio encoder on a CPU", f"{count} recordings of 10 s", times["ours"], unit="s", device=device_name("cpu"),
            peer=times["theirs"], peer_name="transformers", dtype=kind, threads=threads,
            ratio=median(times["ours"].ratios_to(times["theirs"])), flops=flops,
            invalid=None if moved <= MOST_MOVED else f"a product beside it moved by {moved:.0%}",
            details={
                "clock": clock.__name__, "products": "native, float32, avx2" if without_halves else "torch",
                "capability": torch.backends.cpu.get_cpu_capability(), "largest_difference": off,
                "gflops": flops / times["ours"].median / 1e9,
                "gflops_of_a_product": 2 * x.shape[0] * w.numel() / times["product"].median / 1e9,
                "share_of_products": None if without_halves else share_of_products(run), "cpu": cpu_facts(),
            },
        )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--without-halves", action="store_true", help="as without products of bfloat16")
    options = arguments.parse_args(argv)
    if options.device != "cpu":
        raise SystemExit("bench.audio_encoder measures a CPU: --device cpu")
    torch.set_num_threads(options.threads)
    with ExitStack() as stack, torch.inference_mode():
        if options.without_halves:
            slower = partial(_C.gemm, isa="avx2")
            stack.enter_context(patch.object(_C, "has_halves", lambda: False))
            stack.enter_context(patch.object(_C, "gemm", slower))
        dtypes = (torch.bfloat16,) if options.without_halves else (torch.float32, torch.bfloat16)
        counts = (1,) if options.without_halves else (1, 8)
        made = (
            record
            for dtype in dtypes
            for record in speeds(
                dtype, counts, quick=options.quick, without_halves=options.without_halves, threads=options.threads
            )
        )  # fmt: skip
        report(made, options.json)


if __name__ == "__main__":
    main()
