"""PageSums: sums of hidden states over pages, so that a mean over a prompt is known where its pages are cached."""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import torch
from torch import Tensor

from innervoice.model.rows import EmbeddingRow

MOST_PAGES = 4096


class PageSums:
    """Sums over the wanted places of full pages, by all that stands in them and before them; for any thread.

    The most recent MOST_PAGES are kept.
    """

    def __init__(self, page_size: int) -> None:
        self._size = page_size
        self._sums: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def unknown(self, ids: Sequence[int], places: Sequence[int]) -> tuple[list[int], bytes]:
        """The places [in order] from the first page on whose sum is not known, and that page's name; b"": it is not
        full.
        """
        wanted = set(places)
        begin, missing = 0, b""
        for begin, name in self._pages(ids[: places[-1] + 1]):
            has_places = any(at in wanted for at in range(begin, begin + self._size))
            if not name or (has_places and self._found(name) is None):
                missing = name
                break
        left = [at for at in places if at >= begin]
        return left or [places[-1]], missing

    def total(self, ids: Sequence[int], places: Sequence[int], states: Mapping[int, Tensor]) -> Tensor:
        """The sum [D] of the states at all places, of which those before the first unknown page are known."""
        parts: list[Tensor] = []
        for begin, name in self._pages(ids[: places[-1] + 1]):
            own = [at for at in places if begin <= at < begin + self._size]
            found = self._found(name) if name else None
            if found is None and own:
                found = torch.stack([states[at] for at in own]).sum(0)
                if name:
                    self._keep(name, found)
            if found is not None:
                parts.append(found)
        return torch.stack(parts).sum(0)

    def _pages(self, ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """The first place of each page, and the name of all up to its end; b"": it is not full."""
        pages, name = [], b""
        for begin in range(0, len(ids), self._size):
            page = ids[begin : begin + self._size]
            numbers = [(int(i), i.page_key if isinstance(i, EmbeddingRow) else 0) for i in page]
            content = b"".join(struct.pack("<qq", *pair) for pair in numbers)
            name = hashlib.blake2b(name + content, digest_size=16).digest()
            pages.append((begin, name if len(page) == self._size else b""))
        return pages

    def _found(self, name: bytes) -> Tensor | None:
        with self._lock:
            if name in self._sums:
                self._sums.move_to_end(name)
            return self._sums.get(name)

    def _keep(self, name: bytes, value: Tensor) -> None:
        with self._lock:
            self._sums[name] = value
            while len(self._sums) > MOST_PAGES:
                self._sums.popitem(last=False)
