"""Pages of the KV cache: the pool that lends them and the list of those a row holds.

Counting and finding are native.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from innervoice_kernels._C import OutOfPages, PagePool

__all__ = [
    "FP8_PAGES",
    "Activations",
    "Backend",
    "OutOfPages",
    "PageFormat",
    "PagePool",
    "PageTable",
    "page_bytes",
    "pages_for",
]

Numbers: TypeAlias = Sequence[int] | NDArray[np.int64]
Backend = Literal["auto", "native", "plain"]  # the code that runs a model on a CPU over these pages
Activations = Literal["int8", "mixed", "native"]  # how a CPU rounds the inputs of int8 and int4 weights
PageFormat = Literal["float32", "bfloat16", "float16", "fp8_e4m3"]
FP8_PAGES: PageFormat = "fp8_e4m3"

_ROOT = -1
_ITEM_BYTES: dict[PageFormat, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1}
_SCALE_BYTES: dict[PageFormat, int] = {"fp8_e4m3": 4}


def page_bytes(
    page_format: PageFormat, page_size: int, *, num_layers: int, num_kv_heads: int, head_dim: int
) -> int:
    """Bytes of one page, K and V of all layers; fp8 with a float32 scale per page, layer and head for each."""
    per_head = page_size * head_dim * _ITEM_BYTES[page_format] + _SCALE_BYTES.get(page_format, 0)
    return 2 * num_layers * num_kv_heads * per_head


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold num_tokens tokens.

    Raises ValueError for a negative num_tokens or a page_size below 1.
    """
    if num_tokens < 0 or page_size < 1:
        raise ValueError(
            f"cannot count pages for {num_tokens} tokens at {page_size} tokens a page: use 0 or more, at 1 or more"
        )
    return -(-num_tokens // page_size)


class PageTable:
    """The pages that one row holds, in the order of its tokens: token t lies in pages[t // page_size].

    `ids` and `keys` are a row's tokens from its first; a key is a number that says what a token's K and V
    depend on besides the ids up to it. Equal ids and keys up to the end of a page mean equal contents,
    wherever they were computed.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.page_size = pool.page_size
        self.pages: list[int] = []
        self._num_published = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit into the pages held."""
        return len(self.pages) * self.page_size

    @property
    def num_published(self) -> int:
        """Pages, from the first, that this row has found or published and not written since."""
        return self._num_published

    def adopt(self, ids: Numbers, keys: Numbers) -> int:
        """Hold the longest published beginning of these tokens that leaves one to be computed; returns how
        many tokens it has.

        Raises ValueError for a table that holds pages, or ids and keys of different length.
        """
        if self.pages:
            raise ValueError(
                f"the table holds {len(self.pages)} pages: adopt comes before grow, or after release"
            )
        _check_pairs(ids, keys)
        end = max(len(ids) - 1, 0)
        self.pages = self.pool.match(_int64(ids[:end]), _int64(keys[:end]))
        self._num_published = len(self.pages)
        return self.capacity

    def grow(self, num_tokens: int) -> None:
        """Hold num_tokens tokens in all; never gives pages back. Raises OutOfPages, the table unchanged."""
        missing = pages_for(num_tokens, self.page_size) - len(self.pages)
        if missing > 0:
            self.pages += self.pool.allocate(missing)

    def publish(self, ids: Numbers, keys: Numbers, num_tokens: int) -> None:
        """Make the full pages among the first num_tokens tokens, whose K and V must be written, findable for
        other rows.

        A page that equals a published one is given back for that one, so `pages` may change; what is
        published already costs nothing. Raises ValueError when there are fewer ids, keys or pages than
        num_tokens.
        """
        _check_pairs(ids, keys)
        if num_tokens > len(ids) or num_tokens > self.capacity:
            raise ValueError(
                f"cannot publish {num_tokens} tokens: there are {len(ids)} ids, and pages for {self.capacity}"
            )
        for index in range(self._num_published, num_tokens // self.page_size):
            parent = self.pages[index - 1] if index else _ROOT
            own = slice(index * self.page_size, (index + 1) * self.page_size)
            self.pages[index] = self.pool.publish(
                parent, self.pages[index], _int64(ids[own]), _int64(keys[own])
            )
            self._num_published = index + 1

    def fork(self) -> PageTable:
        """A table of the same pages, shared until one of the two writes to them."""
        other = PageTable(self.pool)
        self.pool.retain(self.pages)
        other.pages, other._num_published = list(self.pages), self._num_published
        return other

    def writable(self, position: int) -> tuple[int, int] | None:
        """Make the page of a token this row's own before it is written; called for one token of each page
        that will be.

        None: write in place. (source, target): `pages` has the target now, and source's contents must be
        copied there, in the order of these calls and before anything else is written, because source may be
        free by then. Raises OutOfPages, the table unchanged, and ValueError for a position that has no page,
        or that published pages lie behind.
        """
        if not 0 <= position < self.capacity:
            raise ValueError(
                f"position {position} has no page: the table holds {self.capacity} tokens, grow it first"
            )
        index = position // self.page_size
        if index < self._num_published - 1:
            raise ValueError(
                f"position {position} lies before published tokens: truncate the table to it first"
            )
        page = self.pages[index]
        if not self.pool.is_shared(page):
            return None
        if self.pool.ref_count(page) == 1 and self.pool.num_children(page) == 0:
            self.pool.unpublish(page)
        else:
            self.pages[index] = self.pool.allocate(1)[0]
            self.pool.free([page])
        self._num_published = min(self._num_published, index)
        return None if self.pages[index] == page else (page, self.pages[index])

    def truncate(self, num_tokens: int) -> None:
        """Keep the pages of the first num_tokens tokens and give the others back, published ones to be found
        again.

        Raises ValueError for a negative number, or more tokens than the pages hold.
        """
        keep = pages_for(num_tokens, self.page_size)
        if num_tokens > self.capacity:
            raise ValueError(f"cannot truncate to {num_tokens} tokens: the table holds {self.capacity}")
        self.pages, rest = self.pages[:keep], self.pages[keep:]
        self._num_published = min(self._num_published, num_tokens // self.page_size)
        self.pool.free(rest)

    def release(self) -> None:
        """Give every page back; the table is empty afterwards."""
        self.truncate(0)


def _int64(numbers: Numbers) -> NDArray[np.int64]:
    return np.ascontiguousarray(numbers, np.int64)


def _check_pairs(ids: Numbers, keys: Numbers) -> None:
    if len(ids) != len(keys):
        raise ValueError(f"{len(ids)} ids and {len(keys)} keys came: each token needs both")
