"""The native page pool: against a model of it in Python, its order of eviction, its hash collisions, its own checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from innervoice_kernels._C import OutOfPages, PagePool, PoolState, check_pages, check_state

ROOT = -1
SIZE = 2
Tokens = tuple[tuple[int, int], ...]  # (id, key)


def arrays(tokens: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    ids, keys = np.array(tokens, np.int64).reshape(-1, 2).T
    return np.ascontiguousarray(ids), np.ascontiguousarray(keys)


def publish(pool: PagePool, parent: int, page: int, tokens: Sequence[tuple[int, int]]) -> int:
    return pool.publish(parent, page, *arrays(tokens))


def plain(*ids: int) -> Tokens:
    return tuple((i, 0) for i in ids)


def full_page() -> st.SearchStrategy[Tokens]:
    pair = st.sampled_from([(0, 0), (1, 0), (1, 1)])
    return st.tuples(*[pair] * SIZE)


class PoolMachine(RuleBasedStateMachine):
    """Right and wrong calls in any order. counts, nodes (page -> parent, tokens) and let_go (when a page lost its last holder)
    are what the pool should know; who is held, cached or evicted next is worked out from them by brute force.
    """

    counts: list[int]

    @initialize(num_pages=st.sampled_from([0, 1, 4, 9]), hash_bits=st.sampled_from([0, 1, 64]))
    def make(self, num_pages: int, hash_bits: int) -> None:
        self.pool = PagePool(num_pages, SIZE, hash_bits)
        self.counts = [0] * num_pages
        self.nodes: dict[int, tuple[int, Tokens]] = {}
        self.let_go: dict[int, int] = {}
        self.time = 0
        self.published = self.merged = self.hits = self.misses = self.evictions = 0

    def children(self, page: int) -> list[int]:
        return [child for child, (parent, _) in self.nodes.items() if parent == page]

    def is_held(self, page: int) -> bool:
        return self.counts[page] > 0 or any(self.is_held(child) for child in self.children(page))

    @property
    def referred(self) -> list[int]:
        return [page for page, count in enumerate(self.counts) if count]

    @property
    def free_pages(self) -> set[int]:
        return {page for page, count in enumerate(self.counts) if not count and page not in self.nodes}

    @property
    def cached(self) -> set[int]:
        return {page for page in self.nodes if not self.is_held(page)}

    def evict(self, page: int) -> None:
        leaves = [other for other in self.cached if not self.children(other)]
        assert page in leaves
        assert self.let_go[page] == min(self.let_go[leaf] for leaf in leaves)
        del self.nodes[page]
        self.evictions += 1

    @rule(count=st.sampled_from([0, 1, 2, 3, 4, 10]))
    def allocate(self, count: int) -> None:
        self.take(count)

    def take(self, count: int) -> list[int]:
        free, cached, total = self.free_pages, self.cached, len(self.counts)
        if count > len(free) + len(cached):
            held = total - len(free) - len(cached)
            message = f"asked for {count} pages, {len(free)} of {total} are free, {len(cached)} cached and {held} held"
            with pytest.raises(OutOfPages, match=f"^{message}$"):
                self.pool.allocate(count)
            return []
        pages = self.pool.allocate(count)
        assert len(set(pages)) == len(pages) == count
        assert set(pages[: len(free)]) <= free
        for page in pages[len(free) :]:
            self.evict(page)
        for page in pages:
            self.counts[page] = 1
        return pages

    @precondition(lambda self: self.referred)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(self.referred), max_size=6))
        self.pool.retain(pages)
        for page in pages:
            self.counts[page] += 1

    @precondition(lambda self: self.referred)
    @rule(data=st.data(), every=st.booleans())
    def free(self, data: st.DataObject, every: bool) -> None:
        some = (
            st.permutations(self.referred) if every else st.lists(st.sampled_from(self.referred), max_size=6)
        )
        self.let_go_of(data.draw(some))

    def let_go_of(self, pages: list[int]) -> None:
        if any(pages.count(page) > self.counts[page] for page in pages):
            with pytest.raises(ValueError, match=r"page \d+ has no references: it cannot be freed"):
                self.pool.free(pages)
            return
        self.pool.free(pages)
        for page in pages:
            self.counts[page] -= 1

    @precondition(lambda self: self.referred)
    @rule(data=st.data(), tokens=full_page(), is_new=st.booleans())
    def publish(self, data: st.DataObject, tokens: Tokens, is_new: bool) -> None:
        new = [page for page in self.referred if page not in self.nodes]
        page = data.draw(st.sampled_from(new if is_new and new else self.referred))
        self.publish_page(
            data.draw(st.sampled_from([ROOT, *(p for p in self.referred if p in self.nodes)])), page, tokens
        )

    @rule(data=st.data(), contents=st.lists(full_page(), min_size=1, max_size=3), keep=st.booleans())
    def live_through(self, data: st.DataObject, contents: list[Tokens], keep: bool) -> None:
        """What a row does: pages of its own, published one behind the other, and perhaps let go, in any order."""
        held = [ROOT]
        for tokens in contents:
            for page in self.take(1):
                held.append(self.publish_page(held[-1], page, tokens))
                self.agrees()
        if not keep:
            self.let_go_of(data.draw(st.permutations(held[1:])))

    def publish_page(self, parent: int, page: int, tokens: Tokens) -> int:
        equal = [other for other, node in self.nodes.items() if node == (parent, tokens)]
        if page in self.nodes and equal != [page]:
            with pytest.raises(
                ValueError,
                match=f"page {page} is published already, with other tokens or behind another page",
            ):
                publish(self.pool, parent, page, tokens)
            return page
        canonical = equal[0] if equal else page
        assert publish(self.pool, parent, page, tokens) == canonical
        if not equal:
            self.nodes[page] = (parent, tokens)
            self.published += 1
        elif canonical != page:
            self.counts[canonical] += 1
            self.counts[page] -= 1
            self.merged += 1
        return canonical

    def chain_to(self, page: int) -> list[int]:
        return [] if page == ROOT else [*self.chain_to(self.nodes[page][0]), page]

    @rule(data=st.data(), more=st.lists(full_page(), max_size=2), rest=st.integers(0, SIZE - 1))
    def match(self, data: st.DataObject, more: list[Tokens], rest: int) -> None:
        known = self.chain_to(data.draw(st.sampled_from([ROOT, *self.nodes])))
        pages = [*(self.nodes[page][1] for page in known), *more]
        found, parent = [], ROOT
        for tokens in pages:
            parent = next((page for page, node in self.nodes.items() if node == (parent, tokens)), None)
            if parent is None:
                break
            found.append(parent)
        assert self.pool.match(*arrays([*itertools.chain(*pages), *plain(*[0] * rest)])) == found
        for page in found:
            self.counts[page] += 1
        self.hits += len(found)
        self.misses += len(pages) - len(found)

    @precondition(lambda self: any(page in self.nodes for page in self.referred))
    @rule(data=st.data())
    def unpublish(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from([page for page in self.referred if page in self.nodes]))
        if num_children := len(self.children(page)):
            with pytest.raises(
                ValueError, match=f"page {page} has {num_children} published pages behind it: it cannot"
            ):
                self.pool.unpublish(page)
            return
        self.pool.unpublish(page)
        del self.nodes[page]

    @rule(data=st.data(), call=st.sampled_from(["retain", "free", "unpublish", "publish", "parent"]))
    def name_a_wrong_page_last(self, data: st.DataObject, call: str) -> None:
        unreferred = [page for page, count in enumerate(self.counts) if count == 0]
        unpublished = [page for page in self.referred if page not in self.nodes]
        outside = [-3, len(self.counts), 2**40]
        wrong = data.draw(
            st.sampled_from(unreferred + outside + (unpublished if call in ("unpublish", "parent") else []))
        )
        with pytest.raises(IndexError if wrong in outside else ValueError, match=f"page {wrong} "):
            self.call_wrongly(call, wrong)

    def call_wrongly(self, call: str, wrong: int) -> None:
        if call in ("retain", "free"):
            getattr(self.pool, call)([*self.referred, wrong])
        elif call == "unpublish":
            self.pool.unpublish(wrong)
        elif call == "publish":
            publish(self.pool, ROOT, wrong, plain(5, 5))
        else:
            publish(self.pool, wrong, self.referred[0] if self.referred else wrong, plain(5, 5))

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.time += 1
        cached = self.cached
        self.let_go = {page: self.let_go.get(page, self.time) for page in cached}
        pool, pages = self.pool, range(len(self.counts))
        pool.check_integrity()
        assert pool.ref_counts == self.counts == [pool.ref_count(page) for page in pages]
        assert set(pool.free_pages) == self.free_pages
        assert (pool.num_free, pool.num_cached, pool.num_pages) == (
            len(self.free_pages),
            len(cached),
            len(pages),
        )
        assert pool.num_available == pool.num_free + pool.num_cached
        assert [pool.is_published(page) for page in pages] == [page in self.nodes for page in pages]
        assert [pool.is_shared(page) for page in pages] == [
            self.counts[page] > 1 or page in self.nodes for page in pages
        ]
        assert [pool.num_children(page) for page in pages] == [len(self.children(page)) for page in pages]
        made = pool.counters
        assert (made.hits, made.misses) == (self.hits, self.misses)
        assert (made.published, made.merged, made.evictions) == (self.published, self.merged, self.evictions)


PoolMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PagePool(-1), "num_pages is -1: it must be 0 or more"),
        (lambda: PagePool(1, 0), "page_size is 0: it must be 1 or more"),
        (lambda: PagePool(1, 1, 65), "hash_bits is 65: it must be 0 to 64"),
        (lambda: PagePool(1).allocate(-2), "count is -2: it must be 0 or more"),
    ],
)
def test_numbers_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("page", [-1, 3])
@pytest.mark.parametrize("call", ["ref_count", "is_shared", "is_published", "num_children", "unpublish"])
def test_no_such_page(page: int, call: str) -> None:
    with pytest.raises(IndexError, match=f"page {page} does not exist: the pool has pages 0 to 2"):
        getattr(PagePool(3), call)(page)


def test_page_freed_last_is_reused_first() -> None:
    pool = PagePool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.free([1])
    assert pool.allocate(2) == [1, 3]
    assert repr(pool) == "PagePool(num_pages=4, page_size=16, num_free=0, num_cached=0)"


def chain(pool: PagePool, *tokens: Tokens) -> list[int]:
    """Held, published pages, each behind the one before."""
    pages: list[int] = []
    for own in tokens:
        pages.append(publish(pool, pages[-1] if pages else ROOT, pool.allocate(1)[0], own))
    return pages


def test_equal_prefixes_are_stored_once() -> None:
    pool = PagePool(4, SIZE)
    first = chain(pool, plain(1, 2), plain(3, 4))
    second = chain(pool, plain(1, 2), plain(3, 4))
    assert first == second
    assert (pool.num_free, [pool.ref_count(page) for page in first]) == (2, [2, 2])
    assert pool.match(*arrays(plain(1, 2, 3, 4, 5, 6))) == first
    assert pool.match(*arrays(plain(1, 2, 3))) == first[:1]
    assert pool.match(*arrays(plain(3, 4))) == []
    assert pool.match(*arrays(((1, 0), (2, 7)))) == [], "another key is another page"
    assert (pool.counters.hits, pool.counters.misses, pool.counters.merged) == (3, 3, 2)


def test_longest_unused_is_evicted_first() -> None:
    pool = PagePool(3, SIZE)
    pages = [chain(pool, plain(n, n))[0] for n in range(3)]
    for page in (pages[1], pages[0], pages[2]):
        pool.free([page])
    assert (pool.num_free, pool.num_cached) == (0, 3)
    pool.free(pool.match(*arrays(plain(1, 1))))  # found again, so it is the last now
    assert [pool.allocate(1)[0] for _ in range(3)] == [pages[0], pages[2], pages[1]]
    assert pool.match(*arrays(plain(0, 0))) == []


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_leaves_are_evicted_first(order: tuple[int, ...], at_once: bool) -> None:
    pool = PagePool(3, SIZE)
    pages = chain(pool, plain(0, 0), plain(1, 1), plain(2, 2))
    for indices in [order] if at_once else [(index,) for index in order]:
        pool.free([pages[index] for index in indices])
        pool.check_integrity()
    assert pool.num_cached == 3
    assert [pool.allocate(1)[0] for _ in range(3)] == pages[::-1]


def test_page_stays_while_one_behind_it_is_held() -> None:
    pool = PagePool(2, SIZE)
    first, second = chain(pool, plain(0, 0), plain(1, 1))
    pool.free([first])
    assert (pool.ref_count(first), pool.num_available) == (0, 0)
    with pytest.raises(OutOfPages, match="asked for 1 pages, 0 of 2 are free, 0 cached and 2 held"):
        pool.allocate(1)
    pool.free([second])
    assert pool.num_cached == 2


def test_a_collision_shares_nothing() -> None:
    pool = PagePool(64, SIZE, hash_bits=0)
    wanted = [(plain(a, b), plain(c, d)) for a, b, c, d in itertools.product(range(2), repeat=4)]
    held = {tokens: chain(pool, *tokens) for tokens in wanted}
    assert set(pool.state().tree.hashes) == {0}
    assert pool.num_pages - pool.num_free == 4 + 16
    for tokens, pages in held.items():
        assert pool.match(*arrays(sum(tokens, ()))) == pages
    assert pool.match(*arrays(plain(0, 1, 2, 0))) == held[plain(0, 1), plain(0, 0)][:1]
    assert pool.match(*arrays(((0, 0), (1, 1), (0, 0), (1, 0)))) == []
    for pages in held.values():
        pool.free(pages)
    pool.check_integrity()


def test_refused_arrays() -> None:
    pool = PagePool(2, SIZE)
    [page] = pool.allocate(1)
    ids, keys = arrays(plain(1, 2))
    for wrong, message in [
        ((ids, keys[:1]), r"keys: expected int64 \[T\] with T = 2, got int64 \[1\]"),
        ((ids.astype(np.int32), keys), r"ids: expected int64 \[T\], got int32 \[2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            pool.match(*wrong)
    with pytest.raises(
        ValueError, match=r"ids: expected int64 \[page_size\] with page_size = 2, got int64 \[1\]"
    ):
        pool.publish(ROOT, page, ids[:1], keys[:1])
    with pytest.raises(TypeError, match="ids: expected a tensor or an array, got list"):
        pool.match([1, 2], keys)  # type: ignore[arg-type]
    pool.check_integrity()


@pytest.mark.parametrize(
    ("free_pages", "holders", "cached_pages", "what"),
    [
        ([0, 0], [0, 1], [], "page 0 is on the free list twice"),
        ([2], [1, 1], [], "page 2 is on the free list but does not exist"),
        ([-1], [1], [], "page -1 is on the free list but does not exist"),
        ([1], [0, 0], [], "page 0 has no references and is on no list"),
        ([0, 1], [0, 2], [], "page 1 is on the free list with 2 references"),
        ([], [-1], [], "page 0 has -1 references"),
        ([0], [0], [0], "page 0 is both free and cached"),
        ([], [0], [0, 0], "page 0 is on the cached list twice"),
        ([0], [0, 1], [1], "page 1 is on the cached list with 1 references"),
    ],
)
def test_integrity_names_the_page(
    free_pages: list[int], holders: list[int], cached_pages: list[int], what: str
) -> None:
    with pytest.raises(RuntimeError, match=what):
        check_pages(free_pages, holders, cached_pages)


def busy_pool() -> PagePool:
    """Two pages free, two held and not published, a held chain of two with two cached chains behind it, one at the root."""
    pool = PagePool(10, SIZE)
    held = chain(pool, plain(0, 0), plain(0, 0))
    for tail in (plain(1, 1), plain(2, 2)):
        pages = [publish(pool, held[1], pool.allocate(1)[0], tail)]
        pages.append(publish(pool, pages[0], pool.allocate(1)[0], plain(3, 3)))
        pool.free(pages)
    pool.allocate(1)
    pool.free(chain(pool, plain(4, 4)))
    assert (pool.num_free, pool.num_cached) == (2, 5)
    return pool


ARRAYS = {
    "": ["num_held_children"],
    "tree": ["parents", "num_children", "hashes", "buckets", "next_in_bucket"],
    "cached": ["older", "newer"],
}


def part_of(state: PoolState, name: str) -> object:
    return getattr(state, name) if name else state


@pytest.mark.parametrize(
    ("part", "array"), [(part, array) for part, names in ARRAYS.items() for array in names]
)
def test_integrity_sees_every_changed_link(part: str, array: str) -> None:
    pool = busy_pool()
    right = getattr(part_of(pool.state(), part), array)
    for index, was in enumerate(right):
        for wrong in {*range(-3, 12), 2**40} - {was} - ({*range(-3, 0)} if array == "hashes" else set()):
            state = pool.state()
            setattr(part_of(state, part), array, [*right[:index], wrong, *right[index + 1 :]])
            with pytest.raises(RuntimeError, match="page pool is corrupt: page"):
                check_state(state)


@pytest.mark.parametrize("field", ["oldest", "newest", "size"])
def test_integrity_sees_a_changed_end(field: str) -> None:
    was = getattr(busy_pool().state().cached, field)
    for wrong in {*range(-3, 12), 2**40} - {was}:
        state = busy_pool().state()
        setattr(state.cached, field, wrong)
        with pytest.raises(RuntimeError, match="page pool is corrupt: page"):
            check_state(state)


def test_integrity_sees_lists_counts_and_tokens() -> None:
    pool = busy_pool()
    check_state(pool.state())
    for page, count in enumerate(pool.ref_counts):
        state = pool.state()
        counts = list(state.ref_counts)
        counts[page] = 1 - count
        state.ref_counts = counts
        if page != 0:  # held by the page behind it, whatever its own count
            with pytest.raises(RuntimeError, match="page pool is corrupt: page"):
                check_state(state)
    for free_pages in (
        [],
        pool.free_pages[:1],
        [*pool.free_pages, 0],
        [*pool.free_pages, pool.free_pages[0]],
    ):
        state = pool.state()
        state.free_pages = free_pages
        with pytest.raises(RuntimeError, match="page pool is corrupt: page"):
            check_state(state)
    for index in range(2 * SIZE):
        state = pool.state()
        contents = state.tree.contents
        contents[index] += 1
        state.tree.contents = contents
        with pytest.raises(RuntimeError, match="page 0 has a hash that its parent and tokens do not give"):
            check_state(state)


def test_state_is_a_copy_of_fixed_size() -> None:
    pool = busy_pool()
    state = pool.state()
    state.tree.parents = [7] * 10
    pool.check_integrity()
    with pytest.raises(ValueError, match="older: expected 10 values, got 1"):
        state.cached.older = [0]
