"""The native module: page pool and slot arithmetic. Built by CMake, without torch; tensors come in over DLPack."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

class SupportsDLPack(Protocol):
    """A torch tensor, a numpy array, or anything else with the DLPack methods."""

    @property
    def __dlpack__(self) -> Callable[..., Any]: ...

class OutOfPages(RuntimeError):
    """Fewer pages are free than were asked for; nothing was allocated. The message holds the numbers."""

class PagePool:
    """Reference counts of pages 0 to num_pages - 1. A call on several pages happens wholly or not at all; O(1) a page.

    Raises ValueError for a negative num_pages.
    """

    def __init__(self, num_pages: int) -> None: ...
    def allocate(self, count: int) -> list[int]:
        """`count` free pages, each with one reference. Raises OutOfPages, or ValueError for a negative count."""

    def retain(self, pages: Sequence[int]) -> None:
        """One more reference to each page. Raises IndexError (no such page) or ValueError (the page is free), naming the page."""

    def free(self, pages: Sequence[int]) -> None:
        """One reference less to each page; a page without references is free again. Raises as retain does."""

    def ref_count(self, page: int) -> int:
        """References to the page, 0 when it is free. Raises IndexError."""

    def check_integrity(self) -> None:
        """Raise RuntimeError when free list and reference counts disagree, naming the page. O(num_pages)."""

    @property
    def num_pages(self) -> int:
        """All pages, free or held."""

    @property
    def num_free(self) -> int:
        """Pages that nobody refers to."""

    @property
    def free_pages(self) -> list[int]:
        """A copy of the free list; its last page is allocated first."""

    @property
    def ref_counts(self) -> list[int]:
        """A copy of every page's reference count."""

def check_pages(free_pages: Sequence[int], ref_counts: Sequence[int]) -> None:
    """What PagePool.check_integrity holds: a page is on the free list, once, exactly when it has no references.

    Raises RuntimeError that names the page.
    """

def fill_slots(
    page_table: SupportsDLPack,
    query_start: SupportsDLPack,
    context_len: SupportsDLPack,
    page_size: int,
    out: SupportsDLPack,
) -> None:
    """Write the KV slot, page * page_size + offset, of every query token of a ragged batch into `out`.

    page_table [B, N] int32, query_start [B + 1] int32, context_len [B] int32, out [T] int64: contiguous, in host memory. Row b's
    queries are the last query_start[b + 1] - query_start[b] of its context_len[b] positions; a row without queries is skipped.
    Raises ValueError, with nothing written, for a wrong dtype, size, layout or device, numbers that do not fit each other, or a
    negative page where a row writes; TypeError for what is no tensor.
    """
