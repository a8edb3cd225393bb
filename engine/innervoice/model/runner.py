"""One forward pass over a batch of sequences; owns the pages of keys and values."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.model.batch import Batch, make_batch
from innervoice.model.kv_cache import KVCache
from innervoice.model.native import make_native
from innervoice.model.pages import OutOfPages, pages_for
from innervoice.model.sequence import Sequence
from innervoice.model.transformer import Transformer
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.jit import cdiv

_SPAN = 64  # ids: spans begin and end at multiples of it, so that no kernel is compiled for another alignment
_MOST_SPANS = 8  # products for parts of the head; more of them cost what they save


@dataclass(frozen=True)
class HostPages:
    """A sequence's first pages, off the device; they hold num_tokens tokens."""

    kv: KVCache
    num_pages: int
    num_tokens: int


class ModelRunner:
    """Runs the model. num_pages pages of page_size tokens hold the keys and values of every sequence.

    kv_dtype: of the pages, None: the model's own. backend: "auto" (native code on the CPU where it covers the
    model, else plain PyTorch), "native" or "plain"; threads: of the native code, None: one for each physical
    core that the process may use. max_model_len: tokens of the longest sequence; off the CPU all page tables are
    as wide, so that no kernel is compiled for another width.
    """

    def __init__(
        self,
        model: Transformer,
        num_pages: int,
        page_size: int,
        tracer: Tracer,
        kv_dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        self.model = model
        self.page_size = page_size
        self.device = model.weights.device
        self.kv = KVCache.allocate(
            model.config, num_pages, page_size, kv_dtype or model.weights.dtype, self.device
        )
        self._native = make_native(model, self.kv, backend, threads)
        self._tracer = tracer
        on_cpu = self.device.type == "cpu"
        self._width = None if on_cpu or max_model_len is None else pages_for(max_model_len, page_size)
        self.splits_head = self.device.type == "cuda"  # logits are computed where they are wanted alone

    @property
    def is_native(self) -> bool:
        """Whether native code runs the model, on a CPU."""
        return self._native is not None

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of all layers from one page to another."""
        self.kv.copy_page(source, target)

    @torch.inference_mode()
    def save_pages(self, sequence: Sequence) -> HostPages:
        """Copy the cached pages of a sequence to the host."""
        num_pages = -(-sequence.num_cached // self.page_size)
        used = torch.tensor(sequence.table.pages[:num_pages], dtype=torch.int64, device=self.device)
        return HostPages(self.kv.take(used), num_pages, sequence.num_cached)

    @torch.inference_mode()
    def load_pages(self, sequence: Sequence, saved: HostPages) -> None:
        """Put saved pages back behind those that the sequence has computed; it must hold pages for them, its
        own ones.
        """
        if saved.num_tokens <= sequence.num_cached:
            return
        first = sequence.num_cached // self.page_size
        held = torch.tensor(
            sequence.table.pages[first : saved.num_pages], dtype=torch.int64, device=self.device
        )
        self.kv.put(held, saved.kv, first)
        sequence.num_cached = saved.num_tokens

    @torch.inference_mode()
    def forward(
        self, sequences: abc.Sequence[Sequence], outputs: abc.Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """Feed the tokens that are not cached yet; return logits [B, V] float32 after each sequence's last
        one.

        outputs: half-open ranges of ids, ascending and apart, beside which logits may be left out
        (as NaN; all of them, V = 0, where no range is wanted). None: all are there.
        """
        if self._native is not None:
            have_rows = [sequence.feeds_rows for sequence in sequences]
            if any(have_rows) and not all(have_rows):
                return self._forward_apart(sequences, have_rows, outputs)
        with self._fed(sequences) as batch:
            if self._native is not None and batch.rows is None:
                return self._native.logits(batch.ids, batch.attention, self.kv, batch.last, outputs)
            hidden = self.model.forward(batch.ids, batch.attention, self.kv, batch.rows)
            return self._head(hidden[batch.last], outputs)

    def _forward_apart(
        self,
        sequences: abc.Sequence[Sequence],
        have_rows: abc.Sequence[bool],
        outputs: abc.Sequence[tuple[int, int]] | None,
    ) -> Tensor:
        """The same in two passes, so that a reply's numbers do not depend on embedding rows beside it: native code
        takes none.
        """
        logits = torch.empty(len(sequences), self.model.config.vocab_size, dtype=torch.float32, device="cpu")
        for group in (False, True):
            places = [place for place, has in enumerate(have_rows) if has is group]
            logits[places] = self.forward([sequences[place] for place in places], outputs)
        return logits

    @torch.inference_mode()
    def logits_at(self, sequences: abc.Sequence[Sequence], wanted: abc.Sequence[int]) -> Tensor:
        """Feed the tokens that are not cached yet; return logits [W, V] float32 behind the tokens `wanted`.

        wanted [W]: places among all tokens that are fed, ascending.
        """
        with self._fed(sequences) as batch:
            at = torch.tensor(wanted, dtype=torch.int64, device=self.device)
            if self._native is not None and batch.rows is None:
                return self._native.logits(batch.ids, batch.attention, self.kv, at)
            hidden = self.model.forward(batch.ids, batch.attention, self.kv, batch.rows)
            return self.model.logits(hidden[at])

    @torch.inference_mode()
    def states_at(
        self, sequences: abc.Sequence[Sequence], wanted: abc.Sequence[int], layer: int | None = None
    ) -> Tensor:
        """Feed the tokens that are not cached yet; return hidden states [W, D] float32 of the tokens `wanted`.

        wanted [W]: places among all tokens that are fed, ascending. layer: as for `Transformer.forward`, None: after
        the final norm. Native code gives no hidden states: PyTorch runs the pass.
        """
        with self._fed(sequences) as batch:
            at = torch.tensor(wanted, dtype=torch.int64, device=self.device)
            return self.model.forward(batch.ids, batch.attention, self.kv, batch.rows, layer)[at].float()

    @contextmanager
    def _fed(self, sequences: abc.Sequence[Sequence]) -> Iterator[Batch]:
        """The batch of a forward pass, behind which its tokens are cached."""
        batch = make_batch(sequences, self.page_size, self.device, self._width)
        with self._tracer.span("forward", rows=len(sequences), tokens=len(batch.ids)):
            self.kv.tag(batch.attention.slots, batch.key_tag)
            yield batch
        for sequence in sequences:
            sequence.num_cached = sequence.end

    def forward_isolated(
        self,
        sequences: abc.Sequence[Sequence],
        new_sequence: Callable[[], Sequence],
        outputs: abc.Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, dict[int, Exception]]:
        """Feed as `forward` does -> logits [B, V], and the failures by the `id` of their sequence, whose
        logits are NaN.

        When the batch fails, each sequence is run by itself. When none goes through, one harmless token is
        tried: a failure that it shares belongs to no sequence, and is raised. new_sequence: makes an empty
        one.
        """
        try:
            return self.forward(sequences, outputs), {}
        except Exception as error:
            whole = error
        failed: dict[int, Exception] = {}
        logits: list[Tensor | None] = []
        for sequence in sequences:
            try:
                logits.append(self.forward([sequence], outputs))
            except Exception as error:
                failed[id(sequence)] = error
                logits.append(None)
        if len(failed) == len(sequences) and not self._is_alive(new_sequence()):
            raise whole
        like = next(
            (made for made in logits if made is not None),
            torch.zeros(1, 1, dtype=torch.float32, device="cpu"),
        )
        missing = torch.full_like(like, math.nan)
        return torch.cat([missing if made is None else made for made in logits]), failed

    def _is_alive(self, probe: Sequence) -> bool:
        """Feed one token of an empty sequence; True as well where there is no page for it."""
        probe.extend([0])
        try:
            probe.table.grow(1)
            self.forward([probe])
        except OutOfPages:
            return True
        except Exception:
            return False
        finally:
            probe.release()
        return True

    def _head(self, hidden: Tensor, outputs: abc.Sequence[tuple[int, int]] | None) -> Tensor:
        """Logits [B, V] of hidden states [B, D]; on a GPU of few ids where few are wanted."""
        size = self.model.config.vocab_size
        if self.splits_head and outputs is not None:
            if not outputs:
                return hidden.new_empty(len(hidden), 0, dtype=torch.float32)
            outputs = [
                (first // _SPAN * _SPAN, min(cdiv(last, _SPAN) * _SPAN, size)) for first, last in outputs
            ]
        many = (
            outputs is None
            or len(outputs) > _MOST_SPANS
            or 2 * sum(last - first for first, last in outputs) > size
        )
        # Kernels of quantised weights are compiled for the number of parts that a product's shape asks for.
        if (
            not self.splits_head
            or outputs is None
            or many
            or not isinstance(self.model.weights.output, Tensor)
        ):
            return self.model.logits(hidden)
        logits = torch.full((len(hidden), size), torch.nan, device=self.device, dtype=torch.float32)
        for first, last in outputs:
            logits[:, first:last] = self.model.logits(hidden, (first, last))
        return logits
