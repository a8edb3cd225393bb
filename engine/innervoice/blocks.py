"""Pages of the KV cache: the pool that lends them and the list of those a row holds. The counting itself is native."""

from __future__ import annotations

from innervoice_kernels._C import OutOfPages, PagePool

__all__ = ["OutOfPages", "PagePool", "PageTable", "pages_for"]


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold num_tokens tokens. Raises ValueError for a negative num_tokens or a page_size below 1."""
    if num_tokens < 0 or page_size < 1:
        raise ValueError(f"cannot count pages for {num_tokens} tokens at {page_size} tokens a page: use 0 or more, at 1 or more")
    return -(-num_tokens // page_size)


class PageTable:
    """The pages that one row holds, in the order of its tokens: token t lies in pages[t // page_size]."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self.pages: list[int] = []

    @property
    def capacity(self) -> int:
        """Tokens that fit into the pages held."""
        return len(self.pages) * self.page_size

    def grow(self, num_tokens: int) -> None:
        """Hold num_tokens tokens in all; never gives pages back. Raises OutOfPages, the table unchanged."""
        missing = pages_for(num_tokens, self.page_size) - len(self.pages)
        if missing > 0:
            self.pages += self.pool.allocate(missing)

    def release(self) -> None:
        """Give every page back; the table is empty afterwards."""
        pages, self.pages = self.pages, []
        self.pool.free(pages)
