"""Several contexts' logits to one row, with p_k = softmax(z_k) of context k and context 0 the true one

pragmatic:  log p_0 + alpha * log L0(0 | t),  L0(k | t) = p_k(t)^beta prior_k / sum_j p_j(t)^beta prior_j
guidance:   log p_1 + alpha * (log p_0 - log p_1)
contrast:   (1 + beta) log p_0 - beta log p_1  where p_0(t) >= alpha max p_0, else log p_0 less 10000

logits: [K, V]   ->   row: [V] float32

Sources: Kim et al. 2021 (arXiv 2109.08828, rational speech acts for empathetic replies), Sanchez et al. 2023 (arXiv
2306.17806, classifier-free guidance), O'Brien and Lewis 2023 (arXiv 2309.09117, contrastive decoding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FusionKind = Literal["pragmatic", "guidance", "contrast"]
_IMPLAUSIBLE = 1e4  # what an implausible id loses: it is drawn only where the mask leaves no other


@dataclass(frozen=True)
class Fusing:
    """The combination of one reply's contexts. log_prior: of each context, for the pragmatic kind."""

    kind: FusionKind
    alpha: float
    beta: float = 1.0
    log_prior: tuple[float, ...] = ()


def fuse_ref(logits: Tensor, how: Fusing) -> Tensor:
    """The combined logits, in float32 (float64 for float64 logits)."""
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if how.kind == "pragmatic":
        return logp[0] + how.alpha * _listener(logp, how)[0]
    if how.kind == "guidance":
        return logp[1] + how.alpha * (logp[0] - logp[1])
    combined = (1 + how.beta) * logp[0] - how.beta * logp[1]
    is_plausible = logp[0] >= logp[0].max() + math.log(how.alpha)
    return torch.where(is_plausible, combined, logp[0] - _IMPLAUSIBLE)


def listener_ref(logits: Tensor, how: Fusing, token: int) -> tuple[float, ...]:
    """log L0(k | token) of every context: the prior of the next token where the pragmatic kind updates it."""
    at = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp = (at[:, token] - at.logsumexp(-1))[:, None]
    return tuple(_listener(logp, how)[:, 0].tolist())


def _listener(logp: Tensor, how: Fusing) -> Tensor:
    """log L0(k | t) [K, V]."""
    prior = torch.tensor(how.log_prior, dtype=logp.dtype, device=logp.device)[:, None]
    joint = how.beta * logp + prior
    return joint - joint.logsumexp(0)
