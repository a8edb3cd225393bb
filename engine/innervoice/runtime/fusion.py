"""Fusion: how the distributions of several contexts become the one from which a reply is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from innervoice.fields import Length, Limits, read_fields, shown

_Share = Annotated[float, Limits(above=0, most=1)]


@dataclass(frozen=True)
class Fusion:
    """A combination of a reply's contexts, for each token: of log p_k, the log-probabilities behind context k.

    Context 0 is the prompt, the others are `contexts` of the request. Make one by `pragmatic`, `guidance`,
    `contrast` or `of`; the formulas are those of `innervoice_kernels.sampling.fuse`. Raises ValueError, which names
    the field.
    """

    kind: Literal["pragmatic", "guidance", "contrast", "function"]
    alpha: Annotated[float, Limits(-1e4, 1e4)] = 1.0
    beta: Annotated[float, Limits(0, 1e4)] = 1.0
    prior: Annotated[tuple[_Share, ...], Length(1024)] = ()
    combine: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        combine = self.combine
        object.__setattr__(self, "combine", None)
        read_fields(self, "Fusion.")
        object.__setattr__(self, "combine", combine)
        if (self.kind == "function") != callable(combine):
            needs = "is made by Fusion.of(function)" if self.kind == "function" else "takes no function"
            raise ValueError(f"Fusion.combine is {shown(combine)}: fusion {self.kind!r} {needs}")
        if self.kind == "contrast" and not 0 < self.alpha <= 1:
            raise ValueError(f"Fusion.alpha is {self.alpha}: a contrast's must be above 0 and at most 1")

    @classmethod
    def pragmatic(cls, alpha: float = 6.0, beta: float = 0.9, prior: tuple[float, ...] = ()) -> Fusion:
        """Rational speech acts: prefer ids by which a listener recognises the prompt among the contexts.

        alpha: how much; beta: how surely the listener reads; prior: of each context, equal unless given. What the
        listener believes after a token is the prior of the next.
        """
        return cls("pragmatic", alpha, beta, prior)

    @classmethod
    def guidance(cls, scale: float) -> Fusion:
        """Classifier-free guidance: away from the second context, which lacks the instruction; 1.0: none."""
        return cls("guidance", scale)

    @classmethod
    def contrast(cls, beta: float = 0.5, alpha: float = 0.1) -> Fusion:
        """Contrastive decoding: against the second context, among ids at least alpha times as likely as the first."""
        return cls("contrast", alpha, beta)

    @classmethod
    def of(cls, combine: Callable[[Any], Any]) -> Fusion:
        """A function of your own: logits [K, V], a tensor, to one row [V]. It runs on the engine's thread."""
        return cls("function", combine=combine)

    def check(self, num_contexts: int, max_rows: int | None = None) -> None:
        """Raise ValueError where it does not take so many contexts."""
        if self.kind in ("guidance", "contrast") and num_contexts != 2:
            raise ValueError(
                f"fusion {self.kind!r} takes 2 contexts, and there are {num_contexts}: give contexts=[one]"
            )
        if num_contexts < 2:
            raise ValueError("fusion is given without contexts: give contexts=[...]")
        if self.prior and len(self.prior) != num_contexts:
            raise ValueError(
                f"Fusion.prior has {len(self.prior)} values for {num_contexts} contexts: give one for each"
            )
        if max_rows is not None and num_contexts > max_rows:
            raise ValueError(
                f"a reply of {num_contexts} contexts takes as many rows, and there are {max_rows}: give fewer contexts, or "
                "load the model with more max_sessions"
            )
