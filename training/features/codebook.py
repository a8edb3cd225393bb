"""k-means on Whisper's states: the codebook of the speech tokenizer."""

from __future__ import annotations

import torch

VOCAB_SIZE = 1024
ITERATIONS = 25
EMBEDDING_WIDTH = 128


def nearest(states: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the nearest code of each state. [N, D], [K, D] -> [N]"""
    squares = codebook.square().sum(1)
    return torch.cat([(squares - 2 * part @ codebook.T).argmin(1) for part in states.split(8192)])


def k_means(states: torch.Tensor, num_codes: int = VOCAB_SIZE, seed: int = 0) -> torch.Tensor:
    """Return the centres of so many clusters; one that is hardly used is drawn again. [N, D] -> [K, D]"""
    generator = torch.Generator().manual_seed(seed)
    centres = states[torch.randperm(len(states), generator=generator)[:num_codes]].clone()
    for iteration in range(ITERATIONS):
        codes = nearest(states, centres)
        counts = torch.bincount(codes, minlength=num_codes).float()
        sums = torch.zeros_like(centres).index_add_(0, codes, states)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        idle = torch.nonzero(counts < 2)[:, 0]
        if len(idle) and iteration < ITERATIONS - 4:
            centres[idle] = states[torch.randperm(len(states), generator=generator)[: len(idle)]]
    return centres


def embedding(codebook: torch.Tensor, width: int = EMBEDDING_WIDTH) -> torch.Tensor:
    """Return the codebook in its `width` strongest directions: where the flow's embedding of codes
    begins. [K, width]
    """
    centred = codebook - codebook.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:width].T
    return found / found.std() * 0.3


def perplexity(codes: torch.Tensor, num_codes: int = VOCAB_SIZE) -> float:
    """Return how many codes are used, weighted by use."""
    share = torch.bincount(codes, minlength=num_codes).float() / len(codes)
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))
