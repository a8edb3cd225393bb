"""SpokenText: a reply's transcript, and the place in its sound at which each piece is spoken."""

from __future__ import annotations

from collections.abc import Iterator


class SpokenText:
    """Pieces of a transcript in order. Each begins at a time of the reply's sound, in seconds.

    Pieces with one beginning are spoken one after another until the next beginning.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[str, float]] = []

    def add(self, text: str, start_s: float) -> None:
        """Append a piece whose sound begins at start_s."""
        if text:
            self._pieces.append((text, start_s))

    @property
    def text(self) -> str:
        """The whole transcript."""
        return "".join(text for text, _ in self._pieces)

    def keep_first(self, num_characters: int) -> None:
        """Drop what stands behind so many characters: it was never sent."""
        kept: list[tuple[str, float]] = []
        for text, start_s in self._pieces:
            if num_characters > 0:
                kept.append((text[:num_characters], start_s))
            num_characters -= len(text)
        self._pieces = kept

    def until(self, heard_s: float, end_s: float) -> str:
        """Return the transcript of the sound up to heard_s; end_s: of the reply's whole sound.

        Within a group of pieces with one beginning, characters are taken in proportion to time.
        """
        made = ""
        for text, begin_s, stop_s in self._groups(end_s):
            if heard_s >= stop_s:
                made += text
            elif heard_s > begin_s:
                made += text[: int(len(text) * (heard_s - begin_s) / (stop_s - begin_s))]
        return made

    def _groups(self, end_s: float) -> Iterator[tuple[str, float, float]]:
        starts = sorted({start_s for _, start_s in self._pieces})
        for i, begin_s in enumerate(starts):
            text = "".join(text for text, start_s in self._pieces if start_s == begin_s)
            stop_s = starts[i + 1] if i + 1 < len(starts) else max(end_s, begin_s)
            yield text, begin_s, stop_s
