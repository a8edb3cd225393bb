"""The page pool against a model of it in Python, and the page list of a row."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from innervoice.blocks import OutOfPages, PagePool, PageTable, pages_for
from innervoice_kernels._C import check_pages


class PoolMachine(RuleBasedStateMachine):
    """Right and wrong calls in any order; `counts` is what the pool should hold."""

    counts: list[int]

    @initialize(num_pages=st.integers(0, 12))
    def make(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages)
        self.counts = [0] * num_pages

    @property
    def held(self) -> list[int]:
        return [page for page, count in enumerate(self.counts) if count]

    @rule(count=st.integers(0, 14))
    def allocate(self, count: int) -> None:
        num_free = self.counts.count(0)
        if count > num_free:
            with pytest.raises(OutOfPages, match=f"asked for {count} pages, {num_free} of {len(self.counts)} are free"):
                self.pool.allocate(count)
            return
        pages = self.pool.allocate(count)
        assert len(set(pages)) == len(pages) == count
        assert all(self.counts[page] == 0 for page in pages)
        for page in pages:
            self.counts[page] = 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(self.held), max_size=6))
        self.pool.retain(pages)
        for page in pages:
            self.counts[page] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(self.held), max_size=6))
        too_often = [page for page in pages if pages.count(page) > self.counts[page]]
        if too_often:
            with pytest.raises(ValueError, match=r"page \d+ is free: it cannot be freed"):
                self.pool.free(pages)
            return
        self.pool.free(pages)
        for page in pages:
            self.counts[page] -= 1

    @rule(data=st.data(), call=st.sampled_from(["retain", "free"]))
    def name_a_wrong_page_last(self, data: st.DataObject, call: str) -> None:
        free = [page for page, count in enumerate(self.counts) if count == 0]
        outside = [-1, len(self.counts), 2**40]
        wrong = data.draw(st.sampled_from(free + outside))
        error = IndexError if wrong in outside else ValueError
        with pytest.raises(error, match=f"page {wrong} "):
            getattr(self.pool, call)([*self.held, wrong])

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        assert self.pool.ref_counts == self.counts == [self.pool.ref_count(page) for page in range(len(self.counts))]
        assert self.pool.num_free == len(self.pool.free_pages) == self.counts.count(0)
        assert self.pool.num_pages == len(self.counts)


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def test_negative_numbers() -> None:
    with pytest.raises(ValueError, match="num_pages is -1: it must be 0 or more"):
        PagePool(-1)
    with pytest.raises(ValueError, match="count is -2: it must be 0 or more"):
        PagePool(1).allocate(-2)


@pytest.mark.parametrize("page", [-1, 3])
def test_ref_count_of_no_page(page: int) -> None:
    with pytest.raises(IndexError, match=f"page {page} does not exist: the pool has pages 0 to 2"):
        PagePool(3).ref_count(page)


def test_page_freed_last_is_reused_first() -> None:
    pool = PagePool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.free([1])
    assert pool.allocate(2) == [1, 3]
    assert repr(pool) == "PagePool(num_pages=4, num_free=0)"


@pytest.mark.parametrize(
    ("free_pages", "ref_counts", "what"),
    [
        ([0, 0], [0, 1], "page 0 is on the free list twice"),
        ([2], [1, 1], "page 2 is on the free list but does not exist"),
        ([-1], [1], "page -1 is on the free list but does not exist"),
        ([1], [0, 0], "page 0 has no references and is not on the free list"),
        ([0, 1], [0, 2], "page 1 is on the free list with 2 references"),
        ([], [-1], "page 0 has -1 references"),
    ],
)
def test_integrity_names_the_page(free_pages: list[int], ref_counts: list[int], what: str) -> None:
    with pytest.raises(RuntimeError, match=what):
        check_pages(free_pages, ref_counts)


def test_pages_for() -> None:
    assert [pages_for(tokens, 16) for tokens in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]
    assert pages_for(7, 1) == 7
    for wrong in ((-1, 16), (1, 0)):
        with pytest.raises(ValueError, match="cannot count pages"):
            pages_for(*wrong)


def test_table_grows_and_releases() -> None:
    pool = PagePool(4)
    table = PageTable(pool, page_size=8)
    table.grow(9)
    first = list(table.pages)
    assert (len(first), table.capacity, pool.num_free) == (2, 16, 2)
    table.grow(16)
    table.grow(3)
    assert table.pages == first
    table.grow(17)
    assert table.pages[:2] == first
    assert table.capacity == 24
    with pytest.raises(OutOfPages, match="asked for 2 pages, 1 of 4 are free"):
        table.grow(33)
    assert (table.capacity, pool.num_free) == (24, 1)
    table.release()
    table.release()
    assert (table.pages, pool.num_free) == ([], 4)
    pool.check_integrity()


def test_shared_pages_outlive_one_table() -> None:
    pool = PagePool(2)
    table = PageTable(pool, page_size=4)
    table.grow(8)
    shared = table.pages[0]
    pool.retain([shared])
    table.release()
    assert pool.num_free == 1
    assert pool.ref_count(shared) == 1
