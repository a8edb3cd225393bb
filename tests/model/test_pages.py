"""The page list of a row: whatever rows share, write and give back, each reads its own tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from innervoice.model.pages import (
    OutOfPages,
    PageFormat,
    PagePool,
    PageTable,
    page_bytes,
    pages_for,
)

Token = tuple[int, int]  # (id, key)


class ModelRow:
    """A table, the tokens that its row should read back, and how many of them were written."""

    def __init__(self, table: PageTable, tokens: list[Token], num_written: int) -> None:
        self.table, self.tokens, self.num_written = table, tokens, num_written

    @property
    def pairs(self) -> tuple[list[int], list[int]]:
        return [i for i, _ in self.tokens], [key for _, key in self.tokens]


def tokens_up_to(size: int) -> st.SearchStrategy[list[Token]]:
    return st.lists(st.sampled_from([(0, 0), (1, 0), (1, 1)]), max_size=size)


class TableMachine(RuleBasedStateMachine):
    """Rows that live, end and share pages in any order. What a forward pass writes for a token is all tokens up to it, as K and V
    of a real model depend on them: a page shared wrongly, or written while shared, is read back wrong.
    """

    rows: list[ModelRow]

    @initialize(
        num_pages=st.sampled_from([2, 5, 12]), page_size=st.integers(1, 3), hash_bits=st.sampled_from([0, 64])
    )
    def make(self, num_pages: int, page_size: int, hash_bits: int) -> None:
        self.pool = PagePool(num_pages, page_size, hash_bits)
        self.memory: list[list[tuple[Token, ...]]] = [[()] * page_size for _ in range(num_pages)]
        self.rows = []
        self.seen: list[list[Token]] = [[]]

    def row(self, data: st.DataObject) -> ModelRow:
        return data.draw(st.sampled_from(self.rows))

    @rule(data=st.data(), new=tokens_up_to(4), as_arrays=st.booleans(), publish=st.booleans())
    def start(self, data: st.DataObject, new: list[Token], as_arrays: bool, publish: bool) -> None:
        tokens = [*data.draw(st.sampled_from(self.seen)), *new]
        row = ModelRow(PageTable(self.pool), tokens, 0)
        ids, keys = row.pairs
        row.num_written = row.table.adopt(*(map(np.array, (ids, keys)) if as_arrays and ids else (ids, keys)))
        assert row.num_written == row.table.capacity < max(len(tokens), 1)
        assert row.num_written >= self.longest_shared(tokens)
        self.rows.append(row)
        self.forward([row], [[]], publish)

    def longest_shared(self, tokens: list[Token]) -> int:
        """Tokens at the beginning that a living row has published, in whole pages, all but the last token."""
        size, longest = self.pool.page_size, 0
        for other in self.rows:
            for end in range(size, min(len(tokens) - 1, other.table.num_published * size) + 1, size):
                if other.tokens[:end] == tokens[:end]:
                    longest = max(longest, end)
        return longest

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), new=st.lists(tokens_up_to(5), min_size=3, max_size=3), publish=st.booleans())
    def step(self, data: st.DataObject, new: list[list[Token]], publish: bool) -> None:
        self.forward(
            data.draw(st.lists(st.sampled_from(self.rows), min_size=1, max_size=3, unique=True)), new, publish
        )

    def forward(self, rows: list[ModelRow], new: list[list[Token]], publish: bool) -> None:
        """Pages for all rows, then the copies, then the writes."""
        copies: list[tuple[int, int]] = []
        fed = [row for row, tokens in zip(rows, new, strict=False) if self.prepare(row, tokens, copies)]
        for source, target in copies:
            self.memory[target] = list(self.memory[source])
        for row in fed:
            self.write(row)
            if publish:
                row.table.publish(*row.pairs, row.num_written)

    def prepare(self, row: ModelRow, new: list[Token], copies: list[tuple[int, int]]) -> bool:
        """Pages of the row's own for what it feeds. Without room the new tokens are dropped; copies begun are still made."""
        size = self.pool.page_size
        row.tokens += new
        try:
            row.table.grow(len(row.tokens))
            for index in range(row.num_written // size, pages_for(len(row.tokens), size)):
                position = max(row.num_written, index * size)
                if position < len(row.tokens) and (copy := row.table.writable(position)):
                    copies.append(copy)
                assert position >= len(row.tokens) or not self.pool.is_shared(row.table.pages[index])
        except OutOfPages:
            assert self.pool.num_available < len(row.tokens)
            del row.tokens[len(row.tokens) - len(new) :]
            return False
        return True

    def write(self, row: ModelRow) -> None:
        size = self.pool.page_size
        for position in range(row.num_written, len(row.tokens)):
            self.memory[row.table.pages[position // size]][position % size] = tuple(
                row.tokens[: position + 1]
            )
        row.num_written = len(row.tokens)
        self.seen.append(list(row.tokens))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        row = self.row(data)
        end = data.draw(st.integers(0, row.num_written))
        before = row.table.num_published
        row.table.publish(*row.pairs, end)
        assert row.table.num_published == max(before, end // self.pool.page_size)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        row = self.row(data)
        num_free = self.pool.num_free
        self.rows.append(ModelRow(row.table.fork(), list(row.tokens), row.num_written))
        assert (self.rows[-1].table.pages, self.pool.num_free) == (row.table.pages, num_free)
        assert self.rows[-1].table.num_published == row.table.num_published

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        row = self.row(data)
        row.num_written = data.draw(st.integers(0, row.num_written))
        del row.tokens[row.num_written :]
        row.table.truncate(row.num_written)
        assert len(row.table.pages) == pages_for(row.num_written, self.pool.page_size)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        row = self.row(data)
        self.rows.remove(row)
        row.table.release()
        assert (row.table.pages, row.table.num_published) == ([], 0)

    @invariant()
    def every_row_reads_its_own_tokens(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        size = self.pool.page_size
        counts = [0] * self.pool.num_pages
        for row in self.rows:
            for page in row.table.pages:
                counts[page] += 1
            read = [
                self.memory[row.table.pages[position // size]][position % size]
                for position in range(row.num_written)
            ]
            assert read == [tuple(row.tokens[: position + 1]) for position in range(row.num_written)]
        assert self.pool.ref_counts == counts

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for row in self.rows:
                row.table.release()
            assert self.pool.num_available == self.pool.num_pages


TableMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestTables = TableMachine.TestCase


def test_pages_for() -> None:
    assert [pages_for(tokens, 16) for tokens in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]
    assert pages_for(7, 1) == 7
    for wrong in ((-1, 16), (1, 0)):
        with pytest.raises(ValueError, match="cannot count pages"):
            pages_for(*wrong)


def test_table_grows_and_releases() -> None:
    pool = PagePool(4, page_size=8)
    table = PageTable(pool)
    table.grow(9)
    first = list(table.pages)
    assert (len(first), table.capacity, pool.num_free) == (2, 16, 2)
    table.grow(16)
    table.grow(3)
    assert table.pages == first
    table.grow(17)
    assert table.pages[:2] == first
    assert table.capacity == 24
    with pytest.raises(OutOfPages, match="asked for 2 pages, 1 of 4 are free, 0 cached and 3 held"):
        table.grow(33)
    assert (table.capacity, pool.num_free) == (24, 1)
    table.release()
    table.release()
    assert (table.pages, pool.num_free) == ([], 4)
    pool.check_integrity()


def written(pool: PagePool, num_tokens: int) -> PageTable:
    """A table of tokens 0, 1, 2, ... that are all computed and published as far as pages are full."""
    table = PageTable(pool)
    table.grow(num_tokens)
    table.publish(range(num_tokens), [0] * num_tokens, num_tokens)
    return table


def test_second_prompt_takes_what_is_there() -> None:
    pool = PagePool(8, page_size=4)
    first = written(pool, 10)
    second = PageTable(pool)
    assert second.adopt([*range(9), 77], [0] * 10) == 8
    assert second.pages == first.pages[:2]
    first.release()
    second.release()
    assert (pool.num_free, pool.num_cached) == (6, 2)
    assert second.adopt(range(8), [0] * 8) == 4, "one token is left to be computed"
    assert PageTable(pool).adopt([], []) == 0


def test_equal_rows_end_up_on_the_same_pages() -> None:
    pool = PagePool(9, page_size=4)
    tables = [PageTable(pool) for _ in range(3)]
    for table in tables:
        table.grow(9)
    for table in tables:
        table.publish(np.arange(9), np.zeros(9, np.int64), 9)
    assert len({page for table in tables for page in table.pages}) == 2 + 3
    assert (pool.num_free, pool.counters.merged) == (4, 4)


def test_a_fork_copies_the_page_that_it_writes() -> None:
    pool = PagePool(8, page_size=4)
    table = written(pool, 6)
    other = table.fork()
    shared = table.pages[1]
    copy = other.writable(6)
    assert copy == (shared, other.pages[1])
    assert (table.pages[0], table.pages[1]) == (other.pages[0], shared)
    assert (other.writable(7), table.writable(6)) == (None, None)


def test_a_cut_page_is_not_written_where_it_is_still_read() -> None:
    pool = PagePool(4, page_size=4)
    table = written(pool, 12)
    first, second, third = table.pages
    table.truncate(6)
    assert (pool.num_cached, table.num_published) == (1, 1)
    assert table.writable(6) == (second, 3), "the cached page behind it can still be found"
    assert pool.num_cached == 2
    again = PageTable(pool)
    assert again.adopt(range(13), [0] * 13) == 12
    assert (again.pages, table.pages) == ([first, second, third], [first, 3])
    assert table.num_published == 1


def test_a_cut_page_of_nobody_else_is_written_in_place() -> None:
    pool = PagePool(2, page_size=4)
    table = written(pool, 8)
    second = table.pages[1]
    table.truncate(6)
    assert pool.is_shared(second)
    assert table.writable(6) is None
    assert not pool.is_shared(second)
    assert PageTable(pool).adopt(range(9), [0] * 9) == 4


def test_the_last_published_page_may_be_written_again() -> None:
    pool = PagePool(4, page_size=4)
    table = written(pool, 8)
    other = table.fork()
    assert table.writable(7) == (other.pages[1], 2)
    assert (table.num_published, other.num_published) == (1, 2)
    table.publish([*range(7), 70], [0] * 8, 8)
    assert (table.num_published, pool.num_children(table.pages[0])) == (2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.adopt([1], [0]), "the table holds 3 pages: adopt comes before grow, or after release"),
        (lambda t: PageTable(t.pool).adopt([1, 2], [0]), "2 ids and 1 keys came: each token needs both"),
        (
            lambda t: t.publish([1, 2], [0, 0], 3),
            "cannot publish 3 tokens: there are 2 ids, and pages for 12",
        ),
        (
            lambda t: t.publish(range(13), range(13), 13),
            "cannot publish 13 tokens: there are 13 ids, and pages for 12",
        ),
        (lambda t: t.writable(12), "position 12 has no page: the table holds 12 tokens, grow it first"),
        (lambda t: t.writable(3), "position 3 lies before published tokens: truncate the table to it first"),
        (lambda t: t.truncate(13), "cannot truncate to 13 tokens: the table holds 12"),
        (lambda t: t.truncate(-1), "cannot count pages for -1 tokens"),
    ],
)
def test_what_is_refused(call: Callable[[PageTable], object], message: str) -> None:
    table = written(PagePool(8, page_size=4), 12)
    pages = list(table.pages)
    with pytest.raises(ValueError, match=f"^{message}"):
        call(table)
    assert (table.pages, table.num_published) == (pages, 3)


def test_page_bytes() -> None:
    shape = {"num_layers": 40, "num_kv_heads": 2, "head_dim": 128}
    assert page_bytes("bfloat16", 16, **shape) == 16 * 40_960
    assert {name: page_bytes(name, 16, **shape) for name in get_args(PageFormat)} == {
        "float32": 1_310_720,
        "bfloat16": 655_360,
        "float16": 655_360,
        "fp8_e4m3": 327_680 + 640,
    }
