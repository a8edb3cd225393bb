"""All that the device keeps of the rows that it steps, and how the host writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from innervoice.model.device_step.programs import Place, ProgramStore
from innervoice.model.token_role import reply_tag
from innervoice.schedule import pack
from innervoice.schedule.compile import Program
from innervoice.schedule.cursor_state import CursorState
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor import Rows, request_columns, state_columns, state_values
from innervoice_kernels.sampling.cursor_columns import Ending, StateColumn, TokenKind
from innervoice_kernels.sampling.fuse import KINDS, FusedGroups, Fusing
from innervoice_kernels.sampling.step import RowFeed
from innervoice_kernels.transfer import to_device


@dataclass(frozen=True)
class RowStart:
    """A reply, as the device takes it over. All tokens before `token` have their keys and values in `pages`.

    token: the last one of the row, fed by the first step; position: how many come before it. sampling has no
    unset field. reply and log_weight: the reply's number in its row, and ln of its reflection weight. kind:
    of `token`, None for the prompt's. cursor, num_tokens: of a reply that goes on, the state of its host
    cursor and the tokens emitted so far.
    """

    token: int
    position: int
    pages: Sequence[int]
    program: Program
    sampling: Sampling
    caps: Sequence[int] = ()
    reply: int = 0
    log_weight: float = 0.0
    kind: TokenKind | None = None
    cursor: CursorState | None = None
    num_tokens: int = 0


_LOWER, _COMING, _RESTS, _ORDERS = range(4)


class DeviceRows:
    """Rows numbered from 0; those that a step runs are the first ones."""

    def __init__(self, max_rows: int, max_pages: int, num_caps: int, device: torch.device) -> None:
        # What the host says before a step lies together, so that it goes over in one copy.
        self._orders = torch.full((_ORDERS, max_rows), -1, dtype=torch.int32, device=device)
        self._orders[_RESTS] = 0
        self.feed = replace(RowFeed.allocate(max_rows, max_pages, device), rests=self._orders[_RESTS])
        self.programs = ProgramStore(device)
        cursor = Rows.allocate(max_rows, num_caps, device, self.programs.tensors.sets)
        self.cursor = replace(cursor, lower=self._orders[_LOWER], coming=self._orders[_COMING])
        self.groups = FusedGroups.allocate(max_rows, device)
        self._fused: list[tuple[list[int], Fusing]] = []
        self._places: list[Place | None] = [None] * max_rows
        self._is_guided = [True] * max_rows
        self._weighted: set[int] = set()

    @property
    def is_weighted(self) -> bool:
        """Whether some reply has a reflection weight."""
        return bool(self._weighted)

    @property
    def is_fused(self) -> bool:
        """Whether some rows are contexts of one reply."""
        return bool(self._fused)

    def fuse(self, rows: Sequence[int], how: Fusing) -> None:
        """Draw the tokens of these rows, the contexts of one reply in order, from their combined logits.

        They have begun alike, and each draws the same token by itself. The first one that ends leaves the others unfused.
        """
        self._fused.append((list(rows), how))
        for row, prior in zip(rows, how.log_prior, strict=True):
            self.groups.log_prior[row] = prior
        self._write_groups()

    def log_prior(self, rows: Sequence[int]) -> tuple[float, ...]:
        """The log of the listener's present belief in each of these rows' contexts. Waits for the device."""
        known = self.groups.log_prior.tolist()
        return tuple(known[row] for row in rows)

    def begin(self, row: int, start: RowStart) -> None:
        """Put a reply into a row. Raises ValueError for what cannot be held, and OutOfCapacity."""
        sampling = start.sampling
        if sampling.temperature is None or sampling.top_p is None or sampling.seed is None:
            raise ValueError(f"row {row}: {sampling} has unset fields, expected temperature, top_p and seed")
        cursor, state = start.cursor, None
        if cursor is not None:
            state = state_columns(start.num_tokens, cursor.caps, **pack.state_values(cursor))
        place = self.programs.acquire(start.program)
        try:
            request = request_columns(**pack.request_values(start.program, sampling) | place.columns)
            self.cursor.begin(
                row, request, sampling.temperature, sampling.top_p, sampling.seed, start.caps, state
            )
            self.set_pages({row: start.pages})
        except ValueError:
            self.programs.release(place)
            self.end(row)
            raise
        self._leave(row)
        tag = reply_tag(start.reply, start.log_weight)
        self.feed.token[row] = start.token
        self.feed.kind[row] = -1 if start.kind is None else int(start.kind)
        self.feed.position[row] = start.position
        self.feed.reply[row] = tag
        self.feed.log_weight[row] = start.log_weight
        self._places[row] = place
        self._is_guided[row] = start.program.schedule.guided
        if tag:
            self._weighted.add(row)

    def set_pages(self, pages: Mapping[int, Sequence[int]]) -> None:
        """The pages of some rows, first to last. Raises ValueError when one has more than it may hold."""
        table = self.feed.page_table
        most, device = table.shape[1], table.device
        lines = np.full((len(pages), most), -1, np.int32)
        for line, (row, held) in zip(lines, pages.items(), strict=True):
            if len(held) > most:
                raise ValueError(
                    f"row {row} has {len(held)} pages, the table holds {most}: use a larger max_model_len"
                )
            line[: len(held)] = held
        table.index_copy_(0, *to_device([np.array(list(pages), np.int64), lines], device))

    def order(self, caps: Mapping[int, int | None]) -> None:
        """Say who takes part in the steps to come: these rows, the others rest.

        With each a cap or None: of the reflection that is open, which it can only lower and leaves a token at
        least, or else of the next one, beside its own. It is granted once, in the first of these steps.
        """
        orders = np.full(tuple(self._orders.shape), -1, np.int32)
        orders[_RESTS] = 1
        for row, cap in caps.items():
            orders[_RESTS, row] = 0
            if cap is not None:
                orders[_LOWER, row], orders[_COMING, row] = max(cap, 1), cap
        host = torch.from_numpy(orders)
        self._orders.copy_(host.pin_memory() if self._orders.is_cuda else host, non_blocking=True)

    def lower_cap(self, row: int, cap: int) -> None:
        """Leave the open reflection segment at most so many tokens in all, from the next step on."""
        self.cursor.lower[row] = cap

    def end(self, row: int) -> None:
        """Make a row idle, whatever it was doing."""
        self._leave(row)
        self.cursor.state[row, StateColumn.IS_DONE] = Ending.IDLE

    def move(self, source: int, target: int) -> None:
        """Put a row in the place of an idle one, so that those that run are the first ones."""
        if self._places[target] is not None:
            raise ValueError(f"row {target} is in use: end it before row {source} is moved there")
        for tensor in self._lines():
            tensor[target] = tensor[source]
        self._places[target], self._places[source] = self._places[source], None
        for rows, _ in self._fused:
            if source in rows:
                rows[rows.index(source)] = target
                self._write_groups()
        self._is_guided[target] = self._is_guided[source]
        if source in self._weighted:
            self._weighted ^= {source, target}
        self.cursor.state[source, StateColumn.IS_DONE] = Ending.IDLE

    def state(self, row: int) -> tuple[CursorState, int]:
        """The state of the host cursor that stands where the row does, and the tokens emitted so far.

        Waits for the device.
        """
        values, caps = state_values(self.cursor.state[row].tolist(), self.cursor.caps[row].tolist())
        cursor = pack.cursor_state(values, caps, is_guided=self._is_guided[row])
        return cursor, values["num_tokens"]

    def _lines(self) -> Iterator[Tensor]:
        """What moves with a row: all that is kept from step to step."""
        yield from (getattr(self.feed, f.name) for f in fields(self.feed))
        rows = self.cursor
        yield from (rows.state, rows.request, rows.scale, rows.seed, rows.caps, rows.lower, rows.coming)
        yield self.groups.log_prior

    def _write_groups(self) -> None:
        """Say which rows are contexts of one reply; each other row is a group by itself."""
        groups, num = self.groups, len(self._places)
        firsts = {rows[0]: (rows, how) for rows, how in self._fused}
        others = {row for rows, _ in self._fused for row in rows[1:]}
        columns, members = np.zeros((3, num), np.int32), np.zeros(num, np.int32)
        weights, begin = np.zeros((num, 2), np.float32), 0
        for row in range(num):
            if row in others:
                continue
            rows, how = firsts.get(row, ([row], None))
            members[begin : begin + len(rows)] = rows
            columns[:, row] = begin, len(rows), 0 if how is None else KINDS.index(how.kind)
            weights[row] = (0, 0) if how is None else (how.alpha, how.beta)
            begin += len(rows)
        there = to_device([*columns, members, members.copy(), weights], groups.members.device)
        targets = (groups.begin, groups.count, groups.kind, groups.members, groups.targets, groups.weights)
        for target, values in zip(targets, there, strict=True):
            target.copy_(values, non_blocking=True)

    def _leave(self, row: int) -> None:
        kept = [(rows, how) for rows, how in self._fused if row not in rows]
        if len(kept) < len(self._fused):
            self._fused = kept
            self._write_groups()
        place = self._places[row]
        self._places[row] = None
        self._weighted.discard(row)
        if place is not None:
            self.programs.release(place)
