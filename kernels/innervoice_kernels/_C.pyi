"""The native module: page pool, prefix tree and slot arithmetic. Built by CMake, without torch; tensors come
in over DLPack.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from innervoice_kernels._C_voice import *  # noqa: F403

class SupportsDLPack(Protocol):
    """A torch tensor, a numpy array, or anything else with the DLPack methods."""

    @property
    def __dlpack__(self) -> Callable[..., Any]: ...

class OutOfPages(RuntimeError):
    """Fewer pages are free or cached than were asked for; nothing was allocated. The message holds the
    numbers.
    """

class PoolCounters:
    """What has happened since the pool was made; a snapshot."""

    @property
    def hits(self) -> int:
        """Pages that match found."""

    @property
    def misses(self) -> int:
        """Full pages that match was asked for and did not find."""

    @property
    def published(self) -> int:
        """Pages that became findable."""

    @property
    def merged(self) -> int:
        """Pages given up at publish because an equal one was there."""

    @property
    def evictions(self) -> int:
        """Cached pages that allocate took."""

class PagePool:
    """Pages 0 to num_pages - 1 of page_size tokens each, counted by reference, and the tree of those that can
    be found again.

    A page is free, held, or cached: published, without references, and kept until its place is needed. A
    published page is held while it has references or while a page behind it is held. A call happens wholly or
    not at all; O(1) a page, but for hashing its tokens. hash_bits: how many bits of the 64-bit hash are used;
    fewer make collisions, which cost time and nothing else. Methods that take a page raise IndexError when
    there is no such page. Not thread-safe. Raises ValueError for a negative num_pages, a page_size below 1,
    hash_bits outside 0 to 64.
    """

    def __init__(self, num_pages: int, page_size: int = 16, hash_bits: int = 64) -> None: ...
    def allocate(self, count: int) -> list[int]:
        """`count` pages, each with one reference: free ones first, then cached ones, which are forgotten.

        Of the cached pages the one let go longest ago is taken first, but none before the cached pages behind
        it. Raises OutOfPages, or ValueError for a negative count.
        """

    def retain(self, pages: Sequence[int]) -> None:
        """One more reference to each page. Raises ValueError for a page without references, naming it."""

    def free(self, pages: Sequence[int]) -> None:
        """One reference less to each page; without any, a published page is cached and another is free.
        Raises as retain does.
        """

    def publish(self, parent: int, page: int, ids: SupportsDLPack, keys: SupportsDLPack) -> int:
        """Make a full page findable behind `parent`, a published page with references, or -1. Returns the
        page that holds these tokens from now on: this one, or an equal one that was there before, to which
        the caller's reference is moved.

        ids, keys [page_size] int64, contiguous, in host memory. A key says what else the token's K and V
        depend on. Raises ValueError for a page without references or published elsewhere, a parent that is
        not one, or wrong arrays.
        """

    def match(self, ids: SupportsDLPack, keys: SupportsDLPack) -> list[int]:
        """The longest chain of published pages that holds the beginning of the tokens, each with one more
        reference.

        ids, keys [T] int64, contiguous, in host memory; only whole pages are looked for. A caller that must
        compute the last token passes all but that one. Raises ValueError for wrong arrays.
        """

    def unpublish(self, page: int) -> None:
        """Take a page out of the tree. Raises ValueError unless it has references, is published, and has no
        page behind it.
        """

    def ref_count(self, page: int) -> int:
        """References to the page, 0 when it is free or cached."""

    def is_shared(self, page: int) -> bool:
        """Whether others may read the page (two references, or published), so that it must not be written in
        place.
        """

    def is_published(self, page: int) -> bool:
        """Whether the page is in the tree."""

    def num_children(self, page: int) -> int:
        """Published pages right behind this one."""

    def check_integrity(self) -> None:
        """What check_state holds of the pool's state. Raises RuntimeError. O(num_pages)."""

    def state(self) -> PoolState:
        """A copy of all that the pool knows, counters aside."""

    @property
    def page_size(self) -> int:
        """Tokens that a page holds."""

    @property
    def num_pages(self) -> int:
        """All pages: free, cached or held."""

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""

    @property
    def num_cached(self) -> int:
        """Published pages without references: allocate may evict them."""

    @property
    def num_available(self) -> int:
        """Free and cached pages: what allocate can give."""

    @property
    def counters(self) -> PoolCounters:
        """Hits, misses, pages published and merged, evictions."""

    @property
    def free_pages(self) -> list[int]:
        """A copy of the free list; its last page is allocated first."""

    @property
    def ref_counts(self) -> list[int]:
        """A copy of every page's reference count."""

class PageList:
    """A doubly linked list of pages. In all arrays and links -1 is an end of a chain, or the root, and -2
    stands for outside.
    """

    older: list[int]
    newer: list[int]
    oldest: int
    newest: int
    size: int

class PrefixTree:
    """Published pages: parents, numbers of children, chained hash table, and contents [num_pages, 2,
    page_size] (ids, keys).
    """

    parents: list[int]
    num_children: list[int]
    hashes: list[int]
    buckets: list[int]
    next_in_bucket: list[int]
    contents: list[int]

class PoolState:
    """A pool's state as plain data. Setting an attribute changes this copy; a list of another size raises
    ValueError.

    cached: pages of the tree without references, in the order of release, children before their parent.
    """

    free_pages: list[int]
    ref_counts: list[int]
    num_held_children: list[int]
    tree: PrefixTree
    cached: PageList

def check_state(state: PoolState) -> None:
    """Raise RuntimeError, naming a page, unless every rule of a pool's state holds.

    Each page is free, cached or held, and only one of these; links agree both ways; parents are in the tree;
    hashes, numbers of children and of held children are right; no two pages are equal; no cached page is
    evicted after its parent.
    """

def check_pages(free_pages: Sequence[int], holders: Sequence[int], cached_pages: Sequence[int] = ()) -> None:
    """The first of those rules: a page is free or cached, once, exactly when it has no holders. Raises
    RuntimeError.
    """

def fill_slots(
    page_table: SupportsDLPack,
    query_start: SupportsDLPack,
    context_len: SupportsDLPack,
    page_size: int,
    out: SupportsDLPack,
) -> None:
    """Write the KV slot, page * page_size + offset, of every query token of a ragged batch into `out`.

    page_table [B, N] int32, query_start [B + 1] int32, context_len [B] int32, out [T] int64: contiguous, in
    host memory. Row b's queries are the last query_start[b + 1] - query_start[b] of its context_len[b]
    positions; a row without queries is skipped. Raises ValueError, with nothing written, for a wrong dtype,
    size, layout or device, numbers that do not fit each other, or a negative page where a row writes;
    TypeError for what is no tensor.
    """

def available_isas() -> list[str]:
    """What the CPU kernels can use here, the best last: plain, avx2 (with FMA and F16C), avx512 (with VNNI
    and BF16). What a build merely emulates (INNERVOICE_SIMDE) comes first.
    """

def num_usable_cores() -> int:
    """Physical cores that this process may use."""

class ThreadTeam:
    """Threads that wait for kernels' work; one job at a time, a second caller waits.

    num_threads 0: one for each physical core that the process may use. pin: each thread but the caller stays
    on one core. spin_us: how long a waiting thread looks for work before it sleeps; a team larger than the
    cores sleeps at once. Raises ValueError for numbers below 0 or more than 256 threads.
    """

    def __init__(self, num_threads: int = 0, pin: bool = False, spin_us: int = 50) -> None: ...
    @property
    def num_threads(self) -> int: ...

class Weight:
    """A matrix [N, K] for the CPU kernels, as it lies in the tensors, which are kept and not copied.

    data float32 or bfloat16 [N, K]; or int8 [N, K] with scale float32 [N]; or uint8 [N, ceil(columns / 2)] of
    two codes, the even k in the low four bits, with scale and perhaps minimum float16 [N, ceil(columns /
    group)]. With rows, which is N, the codes are in lanes, as in linear_lanes.py: data int8 or uint8 [P, steps,
    64], scale float32 [16 P], or of int4 scale and minimum float16 [P, groups, 16]. Raises ValueError for anything
    else.
    """

    def __init__(
        self,
        data: SupportsDLPack,
        scale: SupportsDLPack | None = None,
        minimum: SupportsDLPack | None = None,
        columns: int = 0,
        group: int = 0,
        rows: int = 0,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...

def gemm(
    team: ThreadTeam,
    x: SupportsDLPack,
    weight: Weight,
    out: SupportsDLPack,
    bias: SupportsDLPack | None = None,
    isa: str | None = None,
) -> None:
    """out = x W^T + bias: x [M, K], out [M, N], bias [N], float32 and contiguous. isa None: the best of
    available_isas().

    Quantised weights are multiplied as the float32 numbers they stand for; the order of each sum does not
    depend on the number of threads. Raises ValueError for a wrong dtype, size or layout, and for an isa that
    is not there.
    """

def nearest_code(
    team: ThreadTeam, x: SupportsDLPack, codes: Weight, ids: SupportsDLPack, isa: str | None = None
) -> None:
    """ids[m] = the first k with the least |c_k|^2 - 2 x_m c_k: x [M, D] float32, codes [K, D], ids [M] int64.

    A row's id depends on that row alone. Raises ValueError for a wrong dtype, size or layout, and for a
    codebook of none.
    """

def sum_codes(
    team: ThreadTeam,
    ids: SupportsDLPack,
    codes: Weight,
    sizes: Sequence[int],
    out: SupportsDLPack,
    isa: str | None = None,
) -> None:
    """Sums of the codes of each group of codebooks: ids [B, K, T] int64, codes [K N, D], out [B, T, G, D]
    float32; see rvq.py.

    sizes: codebooks a group. Raises ValueError for a wrong dtype, size or layout, and for an id that is not a
    code.
    """

def fill_normals(
    team: ThreadTeam, seed: SupportsDLPack, stream: int, first: SupportsDLPack, out: SupportsDLPack,
    isa: str | None = None,
) -> None:  # fmt: skip
    """The normals of counters (first[b, f], s), key (seed[b], stream), as in noise.py: seed [B], first [B,
    F], out [B, S, F, 4].

    seed and first are int64; of each number the low 32 bits count. Raises ValueError for a wrong dtype, size
    or layout.
    """

def stream_source(
    team: ThreadTeam, f0: SupportsDLPack, cycles: SupportsDLPack, n: SupportsDLPack,
    phases: SupportsDLPack | None, noise: SupportsDLPack | None, weight: SupportsDLPack, bias: float,
    sample_rate: float, frame_len: int, amplitude: float, sigma: float, voiced_above: float,
    out: SupportsDLPack, cycles_after: SupportsDLPack, isa: str | None = None,
) -> None:  # fmt: skip
    """The vocoder's source; see source.py. f0 [B, T], cycles [B] float64; phases [B, H], noise [B, H, L T],
    weight [H] float32.

    out [B, L T] float32, cycles_after [B] float64. Raises ValueError for a wrong dtype, size or layout, and
    n[b] beyond T.
    """

def sample(
    team: ThreadTeam,
    logits: SupportsDLPack,
    offsets: SupportsDLPack,
    ranges: SupportsDLPack,
    temperature: SupportsDLPack,
    top_k: SupportsDLPack,
    top_p: SupportsDLPack,
    keys: SupportsDLPack,
    ids: SupportsDLPack,
    logprobs: SupportsDLPack,
) -> None:
    """Masked sampling, as in sample.py: logits [B, V] float32; row b draws of ranges[offsets[b] : offsets[b +
    1]], [N, 2] int64.

    temperature float32, top_k int64, top_p float64, keys (seed, n, d) int64 [B, 3]; ids int64 and logprobs
    float32 [B] are written. Raises ValueError for a wrong dtype, size or layout, and for ranges that overlap
    or leave the vocabulary.
    """

def fuse(
    team: ThreadTeam,
    logits: SupportsDLPack,
    offsets: SupportsDLPack,
    kinds: SupportsDLPack,
    weights: SupportsDLPack,
    log_prior: SupportsDLPack,
    out: SupportsDLPack,
    stats: SupportsDLPack,
    isa: str | None = None,
) -> None:
    """Rows of logits combined into one, as in fuse.py: group g has rows offsets[g] to offsets[g + 1] of logits [R, V].

    float32, but for offsets [G + 1] and kinds [G], int64. weights [G, 3]: alpha, beta, ln alpha; log_prior [R]; out [G, V]
    and stats [R, 2] are written. Raises ValueError for a wrong dtype, size or layout, an unknown kind, and for groups that
    leave the rows or have too few.
    """

def product(
    x: SupportsDLPack, weight: Weight, out: SupportsDLPack, isa: str | None = None, exact: bool = False
) -> None:
    """out = x W^T as a decoder multiplies rows, on the calling thread: x [M, K], out [M, N], float32 and contiguous.

    Inputs of int8 and int4 weights are rounded to 16 bits, each row's largest magnitude at 32767, or to 8 bits
    where the weights are in lanes; of bfloat16 weights, on avx512, to bfloat16. exact: inputs of int8 and int4
    weights that are not in lanes are not rounded. Raises ValueError as gemm does.
    """

def expert_ffn(
    team: ThreadTeam,
    x: SupportsDLPack,
    router: Weight,
    gate_up: Weight,
    down: Weight,
    out: SupportsDLPack,
    num_used: int,
    normalized: bool = True,
    isa: str | None = None,
    exact: bool = False,
) -> None:
    """Add to out what the experts make of x: both [T, D] float32, contiguous.

    router [E, D]; gate_up [2 F E, D] and down [D E, F], expert below expert; num_used: experts of a row, those
    of the largest logits. Their shares are softmax values, normalized: divided by their sum. exact: as
    product's. Raises ValueError for shapes that do not fit each other.
    """

class Decoder:
    """A decoder's step in one call: all layers by a team of threads. Weights are views of tensors, which are
    kept.

    shape: num_heads, num_kv_heads, head_dim, norm_eps, rope_interleaved, inv_freq (a list), rotary_scale,
    rounds_to_bf16 (cosine and sine), is_exact (quantised weights as float32 numbers, their inputs not
    rounded), and of experts num_used_experts and normalizes_experts. layers: attention_norm, qkv, qkv_bias,
    q_norm, k_norm, attention_out, ffn_norm, gate_up, down each, of experts a router: Weights, and float32
    vectors or None. Raises ValueError for shapes that do not fit each other, and
    for an isa that is not there.
    """

    def __init__(
        self,
        team: ThreadTeam,
        shape: dict[str, object],
        embedding: Weight,
        layers: list[dict[str, object]],
        final_norm: SupportsDLPack,
        output: Weight,
        isa: str | None = None,
    ) -> None: ...
    def step(
        self,
        *,
        ids: SupportsDLPack,
        positions: SupportsDLPack,
        slots: SupportsDLPack,
        page_table: SupportsDLPack,
        query_start: SupportsDLPack,
        context_len: SupportsDLPack,
        k_pages: SupportsDLPack,
        v_pages: SupportsDLPack,
        key_tag: SupportsDLPack,
        query_tag: SupportsDLPack | None,
        log_weight: SupportsDLPack | None,
        wanted: SupportsDLPack,
        logits: SupportsDLPack,
        outputs: SupportsDLPack | None = None,
    ) -> None:
        """Write the keys and values of T tokens of a ragged batch into the pages and `logits` [W, V] of the
        tokens `wanted` [W].

        outputs: half-open ranges [N, 2] int64 of the ids whose logits are written, ascending and apart; None:
        all.

        ids, positions, slots [T] int64, wanted int64, ascending; page_table [B, N], query_start [B + 1],
        context_len [B] int32; pages [L, P, page_size, G, head_dim] float32 or bfloat16; the reflection
        weight's key_tag [P, page_size] and query_tag [T] int32, log_weight [T] float32. Raises ValueError,
        with nothing written, for what does not fit or is not there.
        """
