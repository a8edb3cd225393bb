"""The pages of sequences: shared prefixes, copies before a write, and keys and values that wait on the host."""

from __future__ import annotations

from collections import abc

from innervoice.model.pages import OutOfPages, PagePool, PageTable
from innervoice.model.runner import HostPages, ModelRunner
from innervoice.model.sequence import Sequence, TokenColumns


class SequencePages:
    """Gives sequences their pages. share_prefixes: sequences that begin alike hold the same pages."""

    def __init__(self, runner: ModelRunner, pool: PagePool, *, share_prefixes: bool) -> None:
        self._runner = runner
        self._pool = pool
        self.shares = share_prefixes
        self.page_size = pool.page_size

    def new_sequence(self) -> Sequence:
        """An empty sequence without pages."""
        return Sequence(PageTable(self._pool))

    def adopt(self, sequence: Sequence) -> None:
        """Give a sequence without pages those of its longest beginning that was computed before."""
        if self.shares and not sequence.table.pages:
            sequence.num_cached = sequence.table.adopt(sequence.ids, sequence.page_keys)

    def rewrite(self, sequence: Sequence, columns: TokenColumns) -> None:
        """Give a sequence other tokens: it holds the pages of its longest beginning that was computed before,
        by itself or by another.
        """
        sequence.rewrite(columns)
        if not self.shares:
            return
        found = PageTable(self._pool)
        num_cached = found.adopt(sequence.ids, sequence.page_keys)
        if num_cached <= sequence.num_cached:
            found.release()
            return
        sequence.table.release()
        sequence.table, sequence.num_cached = found, num_cached

    def publish(self, sequences: abc.Sequence[Sequence]) -> None:
        """Let other sequences find the pages that are full now."""
        if self.shares:
            for sequence in sequences:
                sequence.table.publish(sequence.ids, sequence.page_keys, sequence.num_cached)

    def make_writable(self, sequence: Sequence, ahead: int = 0) -> bool:
        """Add pages for all tokens that a step feeds, and copy the first page written if it is shared; False:
        none are free.

        ahead: number of tokens, queued on the device, that the sequence does not know yet.
        """
        try:
            first = sequence.num_cached + ahead
            moved = sequence.table.writable(first) if first < sequence.table.capacity else None
            if moved is not None:
                self._runner.copy_page(*moved)
            sequence.table.grow(sequence.end + ahead)
        except OutOfPages:
            return False
        return True

    def save(self, sequence: Sequence) -> HostPages:
        """Copy the cached keys and values to the host."""
        return self._runner.save_pages(sequence)

    def load(self, sequence: Sequence, saved: HostPages) -> None:
        """Put saved keys and values back.

        Without free pages the sequence gives up its own, and is computed again.
        """
        if saved.num_tokens <= sequence.num_cached:
            return
        try:
            sequence.table.grow(saved.num_tokens)
            self._runner.load_pages(sequence, saved)
        except OutOfPages:
            sequence.release()
