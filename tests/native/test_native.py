"""The native module: it needs no torch, takes tensors of anybody, and says what is wrong with one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innervoice_kernels import _C

Rows = Sequence[tuple[int, int]]


def slots_by_definition(table: np.ndarray, rows: Rows, page_size: int) -> list[int]:
    """table [B, N]; rows: (queries, context) of each row."""
    slots = []
    for pages, (num_queries, context_len) in zip(table, rows, strict=True):
        positions = np.arange(context_len - num_queries, context_len)
        slots += (pages[positions // page_size].astype(np.int64) * page_size + positions % page_size).tolist()
    return slots


def batch_of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    queries, contexts = np.array(rows, np.int32).reshape(-1, 2).T
    return np.concatenate([[0], np.cumsum(queries)]).astype(np.int32), np.ascontiguousarray(contexts)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Rows, int]:
    row = st.integers(0, 40).flatmap(lambda context: st.tuples(st.integers(0, context), st.just(context)))
    return draw(st.lists(row, max_size=5)), draw(st.integers(1, 17))


@given(ragged(), st.integers(0, 2**32 - 1), st.booleans())
def test_fill_slots_is_its_definition(batch: tuple[Rows, int], seed: int, from_torch: bool) -> None:
    rows, page_size = batch
    columns = max((-(-context // page_size) for _, context in rows), default=0)
    table = np.random.default_rng(seed).integers(0, 2**31 - 1, (len(rows), columns), dtype=np.int32)
    start, context = batch_of(rows)
    out = np.full(int(start[-1]), -1, np.int64)
    arguments = [table, start, context, out]
    table_, start_, context_, out_ = [torch.from_numpy(a) for a in arguments] if from_torch else arguments
    _C.fill_slots(table_, start_, context_, page_size, out_)
    assert out.tolist() == slots_by_definition(table, rows, page_size)


GOOD = {
    "page_table": torch.tensor([[4, 2], [0, 7]], dtype=torch.int32),
    "query_start": torch.tensor([0, 3, 4], dtype=torch.int32),
    "context_len": torch.tensor([3, 6], dtype=torch.int32),
    "page_size": 4,
    "out": torch.zeros(4, dtype=torch.int64),
}


def int32(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def read_only(values: list[int]) -> np.ndarray:
    array = np.array(values, np.int64)
    array.flags.writeable = False
    return array


def test_the_good_case() -> None:
    out = torch.zeros(4, dtype=torch.int64)
    _C.fill_slots(**{**GOOD, "out": out})
    assert out.tolist() == [16, 17, 18, 29]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "page_table",
            torch.zeros(2, 3, dtype=torch.int64),
            "page_table: expected int32 [B, N], got int64 [2, 3]",
        ),
        ("page_table", int32(1, 2), "page_table: expected int32 [B, N], got int32 [2]"),
        (
            "page_table",
            torch.zeros(2, 2, dtype=torch.bfloat16),
            "page_table: expected int32 [B, N], got bfloat16 [2, 2]",
        ),
        (
            "page_table",
            torch.zeros(2, 2, dtype=torch.bool),
            "page_table: expected int32 [B, N], got bool [2, 2]",
        ),
        (
            "page_table",
            int32([4, 0], [2, 7]).T,
            "page_table: expected contiguous int32 [B, N], got int32 [2, 2] with strides [1, 2]",
        ),
        ("query_start", int32(0, 4), "query_start: expected int32 [B + 1] with B = 2, got int32 [2]"),
        ("query_start", int32(1, 3, 4), "query_start[0] is 1: it must be 0"),
        ("query_start", int32(0, 5, 4), "query_start[2] is 4, less than the one before it"),
        ("query_start", int32(0, 3, 5), "query_start[2] is 5, but out has 4 tokens"),
        ("context_len", int32(3, 6, 1), "context_len: expected int32 [B] with B = 2, got int32 [3]"),
        ("context_len", int32(2, 6), "context_len[0] is 2, less than the row's 3 query tokens"),
        ("context_len", int32(3, 9), "context_len[1] is 9: it needs 3 pages, page_table has 2 columns"),
        ("page_table", int32([4, 2], [0, -1]), "page_table[1, 1] is -1, but the row writes there"),
        ("page_size", 0, "page_size is 0: it must be 1 or more"),
        ("out", read_only([0] * 4), "out: expected a tensor that can be written, got a read-only one"),
    ],
)
def test_what_is_refused(name: str, value: object, message: str) -> None:
    out = torch.full((4,), -1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _C.fill_slots(**{**GOOD, "out": out, name: value})
    assert out.tolist() == [-1] * 4


def test_what_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="context_len: expected a tensor or an array, got list"):
        _C.fill_slots(**{**GOOD, "context_len": [3, 6]})


def test_unused_entries_may_be_anything() -> None:
    out = np.zeros(1, np.int64)
    _C.fill_slots(np.array([[-1, 3], [-1, -1]], np.int32), int32(0, 1, 1), int32(5, 900), 4, out)
    assert out.tolist() == [12]


def test_inputs_may_be_read_only_and_out_a_slice() -> None:
    start = np.array([0, 3, 4], np.int32)
    start.flags.writeable = False
    out = torch.zeros(8, dtype=torch.int64)
    _C.fill_slots(**{**GOOD, "query_start": start, "out": out[2:6]})
    assert out.tolist() == [0, 0, 16, 17, 18, 29, 0, 0]


class OldProducer:
    """A producer from before DLPack 1.0, which knows no max_version; counts its exports."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.capsules: list[object] = []

    def __dlpack__(self, stream: None = None) -> object:
        self.capsules.append(self.array.__dlpack__())
        return self.capsules[-1]


def test_capsules_are_consumed_and_their_memory_given_back() -> None:
    context = np.array([3, 6], np.int32)
    producer = OldProducer(context)
    references = sys.getrefcount(context)
    _C.fill_slots(**{**GOOD, "context_len": producer})
    assert '"used_dltensor"' in repr(producer.capsules[0])
    assert sys.getrefcount(context) == references

    new = context.__dlpack__(max_version=(1, 0))
    assert '"dltensor_versioned"' in repr(new)
    del new
    for _ in range(3):
        _C.fill_slots(**{**GOOD, "context_len": context})
        with pytest.raises(ValueError, match="out: expected int64"):
            _C.fill_slots(**{**GOOD, "context_len": context, "out": context})
    assert sys.getrefcount(context) == references


def test_pool_takes_tensors_of_anybody() -> None:
    pool = _C.PagePool(2, page_size=2)
    [page] = pool.allocate(1)
    assert pool.publish(-1, page, torch.tensor([5, 6]), read_only([0, 0])) == page
    assert pool.match(read_only([5, 6, 7]), torch.zeros(3, dtype=torch.int64)) == [page]


def test_a_used_capsule_is_refused() -> None:
    producer = OldProducer(np.array([3, 6], np.int32))
    _C.fill_slots(**{**GOOD, "context_len": producer})

    class Again:
        def __dlpack__(self) -> object:
            return producer.capsules[0]

    with pytest.raises(TypeError, match="context_len: __dlpack__ returned no unused DLPack capsule"):
        _C.fill_slots(**{**GOOD, "context_len": Again()})


@pytest.mark.gpu
def test_a_gpu_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="page_table: expected a tensor in host memory, got one on cuda:0"):
        _C.fill_slots(**{**GOOD, "page_table": GOOD["page_table"].cuda()})


def test_import_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.path[:0] = sys.argv[1:]\n"
        "import innervoice_kernels._C as c; assert c.PagePool(3).allocate(2) == [0, 1]; print('ok')"
    )
    paths = [path for path in sys.path if path]
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf comes with binutils")
def test_module_links_nothing_of_torch() -> None:
    listing = subprocess.run(
        ["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", listing)
    allowed = re.compile(r"(libstdc\+\+|libgcc_s|libc|libm|libpthread|ld-linux[-\w]*|libpython[\w.]*)\.so")
    assert needed
    assert [name for name in needed if not allowed.match(name)] == []
