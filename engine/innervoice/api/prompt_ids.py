"""Refusals of a prompt's ids and embedding rows, before they are fed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from innervoice.model.rows import EmbeddingRow, rows_among
from innervoice.types import Vocabulary


def check_prompt_ids(ids: Sequence[int], vocabulary: Vocabulary, hidden_size: int | None) -> None:
    """Raise ValueError for ids outside the vocabulary, rows of another width than hidden_size (None: any), and ids in
    whose place a picture or a recording would have to be.
    """
    size = vocabulary.size
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        raise ValueError(f"prompt id {int(wrong[0])} is outside the vocabulary of {size}")
    widths = {row.block.values.shape[1] for _, row in rows_among(ids)} - {hidden_size}
    if hidden_size is not None and widths:
        raise ValueError(f"an embedding row has {min(widths)} values: this model takes {hidden_size}")
    if vocabulary.heard is None:
        return
    _, row, _ = vocabulary.heard
    for i in ids:
        if i in vocabulary.unseen:
            raise ValueError(
                f"prompt id {int(i)} stands for an image or a video, which this engine does not read: leave it out"
            )
        if i == row and not isinstance(i, EmbeddingRow):
            raise ValueError(
                f"prompt id {int(i)} stands for a row of a recording and has none: give the recording, or its rows"
            )


def context_ids(
    contexts: Iterable[Any], ids_of: Callable[[Any], Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The ids of a reply's further contexts. Raises ValueError, which names the one that is refused."""
    made = []
    for number, context in enumerate(contexts):
        try:
            made.append(tuple(ids_of(context)))
        except ValueError as error:
            raise ValueError(f"contexts[{number}]: {error}") from None
    return tuple(made)
