"""FusedContexts: the contexts of a reply beside its prompt, and the combination of their distributions as it stands."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from innervoice.fields import shown
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.runtime.fusion import Fusion
from innervoice.types import RequestFailed
from innervoice_kernels.sampling.fuse import Fusing, fuse_ref, listener_ref

_MOST_PAGE = 64  # tokens of the largest page: a context's last one is counted whole


def fused_tokens(lengths: Iterable[int]) -> int:
    """Tokens for which a scheduler is to count pages, of contexts of these lengths, each with pages of its own."""
    return sum(length + _MOST_PAGE for length in lengths)


class FusedContexts:
    """sequences: those of the contexts, which every token of the reply joins too. Its prior changes as it is drawn."""

    def __init__(self, fusion: Fusion, sequences: abc.Sequence[Sequence], log_weight: float) -> None:
        self.sequences = list(sequences)
        self.size = 1 + len(self.sequences)
        self._numbers = [sequence.begin_reply(log_weight) for sequence in self.sequences]
        self._combine = fusion.combine
        prior = fusion.prior or (1 / self.size,) * self.size
        self._fusing: Fusing | None = None
        if fusion.kind != "function":
            self._fusing = Fusing(fusion.kind, fusion.alpha, fusion.beta, tuple(map(math.log, prior)))
        self._logits: Tensor | None = None

    def append(self, token: int, role: TokenRole) -> None:
        """Add a token of the reply to every context; the listener's belief in them after it is the next prior."""
        for sequence, number in zip(self.sequences, self._numbers, strict=True):
            sequence.append(token, role, number)
        if self._logits is not None and self._fusing is not None and self._fusing.kind == "pragmatic":
            prior = listener_ref(self._logits, self._fusing, token)
            self._fusing = replace(self._fusing, log_prior=prior)
        self._logits = None

    def combine(self, logits: Tensor) -> Tensor:
        """One row of logits [V] from those of the prompt and all contexts [K, V].

        Raises RequestFailed for what a caller's function gives that is no row of logits.
        """
        self._logits = logits
        if self._fusing is not None:
            return fuse_ref(logits, self._fusing)
        assert self._combine is not None, "checked before"
        made = self._combine(logits)
        if not isinstance(made, Tensor) or made.shape != logits.shape[1:]:
            found = tuple(made.shape) if isinstance(made, Tensor) else shown(made)
            raise RequestFailed(f"the fusion gave {found}: it must give one row of {logits.shape[1]} logits")
        return made.to(logits)

    def release(self) -> None:
        """Give every page back."""
        for sequence in self.sequences:
            sequence.release()
