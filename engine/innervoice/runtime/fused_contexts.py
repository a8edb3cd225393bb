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
from innervoice_kernels.sampling.fuse import Fusing, listener


def fused_tokens(lengths: Iterable[int], page_size: int) -> int:
    """Tokens for which a scheduler is to count pages, of contexts of these lengths beside a prompt.

    Each has whole pages of its own, with room for its next token.
    """
    return sum(page_size * (length // page_size + 1) for length in lengths)


class FusedContexts:
    """sequences: those of the contexts, which every token of the reply joins too.

    fusing: the combination for the next token, with the listener's belief in each context so far; of a caller's
    function the first row as it is.
    """

    def __init__(self, fusion: Fusion, sequences: abc.Sequence[Sequence], log_weight: float) -> None:
        self.sequences = list(sequences)
        self.size = 1 + len(self.sequences)
        self.combine = fusion.combine
        prior = fusion.prior or (1 / self.size,) * self.size
        self.fusing = Fusing(
            "first" if fusion.kind == "function" else fusion.kind,
            fusion.alpha,
            fusion.beta,
            tuple(map(math.log, prior)),
            self.size,
        )
        self._numbers = [sequence.begin_reply(log_weight) for sequence in self.sequences]
        self._logits: tuple[Tensor, Tensor] | None = None

    def number_in(self, sequence: Sequence, otherwise: int) -> int:
        """The number of the reply within a context's sequence; otherwise: within the prompt's."""
        numbers = zip(self.sequences, self._numbers, strict=True)
        return next((number for one, number in numbers if one is sequence), otherwise)

    def believe(self, log_prior: tuple[float, ...]) -> None:
        """Take what the listener believes of the contexts by now."""
        if self.fusing.log_prior:
            self.fusing = replace(self.fusing, log_prior=log_prior)

    def append(self, token: int, role: TokenRole) -> None:
        """Add a token of the reply to every context."""
        for sequence, number in zip(self.sequences, self._numbers, strict=True):
            sequence.append(token, role, number)

    def offer(self, logits: Tensor, stats: Tensor) -> None:
        """Keep the logits [K, V] of prompt and contexts, and their stats, from which the next token is drawn."""
        self._logits = (logits, stats)

    def hear(self, token: int) -> None:
        """Take what a listener believes after a drawn token as the prior of the next."""
        if self.fusing.kind == "pragmatic" and self._logits is not None:
            self.fusing = replace(self.fusing, log_prior=listener(*self._logits, self.fusing, token))
        self._logits = None

    def call(self, logits: Tensor) -> Tensor:
        """The row of logits [V] that the caller's function makes of those of the prompt and all contexts [K, V].

        Raises RequestFailed for what is no row of logits.
        """
        assert self.combine is not None, "no function combines these contexts"
        made = self.combine(logits)
        if not isinstance(made, Tensor) or made.shape != logits.shape[1:]:
            found = tuple(made.shape) if isinstance(made, Tensor) else shown(made)
            raise RequestFailed(f"the fusion gave {found}: it must give one row of {logits.shape[1]} logits")
        if not math.isfinite(best := float(made.max())):
            raise RequestFailed(
                f"the largest logit that the fusion gave is {best}: it must be a finite number"
            )
        return made.to(logits)

    def release(self) -> None:
        """Give every page back."""
        for sequence in self.sequences:
            sequence.release()
