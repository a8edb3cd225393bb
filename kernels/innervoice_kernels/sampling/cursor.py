"""The positions of a batch's rows in their schedules, on the device: the twin of the
engine's cursor, one lane a row.

A step is: `prepare` (what each row may draw next), the head and the draws, `advance` (take what was
drawn, or what is forced). A program is the engine's compiled schedule: a row of int32 a state. A step
reads nothing back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, jit, launch, tl
from innervoice_kernels.sampling.cursor_columns import (
    UNLIMITED,
    Ending,
    MaskColumn,
    OutputColumn,
    ProgramColumn,
    RequestColumn,
    StateColumn,
)
from innervoice_kernels.sampling.cursor_walk import advance_rows, prepare_rows
from innervoice_kernels.sampling.philox import signed
from innervoice_kernels.transfer import to_device

SLOTS = 2  # draws of a row: from where it stands, and from where it would stand after a discarded draw


def first_state() -> list[int]:
    """A row at the start of its reply."""
    state = [0] * StateColumn.WIDTH
    state[StateColumn.ROW] = state[StateColumn.SEGMENT] = state[StateColumn.LAST] = -1
    state[StateColumn.LIMIT], state[StateColumn.FRESH] = UNLIMITED, 1
    state[StateColumn.CAPPED] = -1
    return state


def state_columns(num_tokens: int, caps: Sequence[int] = (), **values: int) -> list[int]:
    """The state of a reply that has emitted so many tokens, by the names of its columns in lower case.

    Columns that are not given are as at the start of a reply. caps: of its reflections in order, of which
    the row keeps the next one's.
    """
    state = first_state()
    for name, value in values.items():
        state[StateColumn[name.upper()]] = value
    number = state[StateColumn.NUM_REFLECTIONS]
    if number < len(caps):
        state[StateColumn.CAPPED] = number
        state[StateColumn.CAP] = min(caps[number], UNLIMITED)
    state[StateColumn.NUM_TOKENS] = num_tokens
    return state


def state_values(state: Sequence[int], caps: Sequence[int]) -> tuple[dict[str, int], list[int]]:
    """A row's state by the names of its columns in lower case, and the caps of its
    reflections; caps: the line of its Rows.

    is_done is 1 where the reply has stopped, 0 where it ended otherwise or runs.
    """
    columns = [column for column in StateColumn if column is not StateColumn.WIDTH]
    values = {column.name.lower(): state[column] for column in columns}
    values["is_done"] = int(state[StateColumn.IS_DONE] == Ending.STOP)
    known = max((index + 1 for index, cap in enumerate(caps) if cap != UNLIMITED), default=0)
    kept, number = list(caps[:known]), state[StateColumn.CAPPED]
    if number >= 0:
        kept += [UNLIMITED] * (number + 1 - len(kept))
        kept[number] = state[StateColumn.CAP]
    return values, kept


def request_columns(*, eos: Sequence[int] = (), **values: int | None) -> list[int]:
    """The columns of Request by their names in lower case; None and missing values are
    -1, or 0 for counts and flags.

    reflect and max_tokens: UNLIMITED unless given. Raises ValueError for more than 4 eos ids.
    """
    if len(eos) > RequestColumn.WIDTH - RequestColumn.EOS:
        raise ValueError(
            f"a reply has {len(eos)} eos ids, the cursor holds {RequestColumn.WIDTH - RequestColumn.EOS}"
        )
    columns = [0] * RequestColumn.WIDTH
    for name in ("OPEN", "CLOSE", "DONE", "TOOL_OPEN", "TOOL_CLOSE", "TOOL_ROW"):
        columns[RequestColumn[name]] = -1
    columns[RequestColumn.REFLECT] = columns[RequestColumn.MAX_TOKENS] = UNLIMITED
    columns[RequestColumn.EOS :] = [*eos, *[-1] * (RequestColumn.WIDTH - RequestColumn.EOS - len(eos))]
    for name, value in values.items():
        columns[RequestColumn[name.upper()]] = -1 if value is None else min(int(value), UNLIMITED)
    return columns


@dataclass(frozen=True)
class Programs:
    """Compiled schedules one behind the other: their rows, their forced ids, and the
    samplings and sets of ids that rows refer to.

    samplings [*, 3]: temperature, top_p, top_k; NaN: the request's. sets: packed bits, see `bits.py`.
    """

    table: Tensor  # [S, ProgramColumn.WIDTH] int32
    forced: Tensor  # [N] int32
    samplings: Tensor  # [*, 3] float32
    sets: Tensor  # [*] int32

    @classmethod
    def join(cls, programs: Sequence[tuple[Tensor, ...]], device: str | torch.device) -> Programs:
        """Tables, forced ids, samplings and sets of several programs, one behind the other; none
        of the four comes out empty.
        """
        tables, forced, samplings, sets = (
            [list(t) for t in zip(*programs, strict=True)] if programs else [[], [], [], []]
        )
        tables.append(torch.zeros(1, ProgramColumn.WIDTH, dtype=torch.float32, device="cpu"))
        forced.append(torch.zeros(1, dtype=torch.float32, device="cpu"))
        samplings.append(torch.full((1, 3), float("nan"), dtype=torch.float32, device="cpu"))
        sets.append(torch.zeros(1, dtype=torch.int32, device="cpu"))
        return cls(
            torch.cat(tables).to(device, torch.int32),
            torch.cat(forced).to(device, torch.int32),
            torch.cat(samplings).to(device, torch.float32),
            torch.cat(sets).to(device, torch.int32),
        )


@dataclass(frozen=True)
class Draws:
    """The sampling parameters of each of R slots. Empty masks draw nothing.

    mask [R, MaskColumn.WIDTH] int32. scale [R, 2] float32: temperature, top_p. key [R, 3] int64: seed, n, d. sets [*]
    int32: packed bits of the ids that masks have beside ranges and single ids, those of all slots; None: they have none.
    """

    mask: Tensor
    scale: Tensor
    key: Tensor
    sets: Tensor | None = None

    @classmethod
    def allocate(cls, slots: int, device: torch.device, sets: Tensor | None = None) -> Draws:
        """For so many slots, unwritten."""
        return cls(
            torch.empty(slots, MaskColumn.WIDTH, dtype=torch.int32, device=device),
            torch.empty(slots, 2, dtype=torch.float32, device=device),
            torch.empty(slots, 3, dtype=torch.int64, device=device),
            sets,
        )

    def first(self, slots: int) -> Draws:
        """The first slots, in the same memory."""
        return Draws(self.mask[:slots], self.scale[:slots], self.key[:slots], self.sets)


@dataclass(frozen=True)
class Rows:
    """The rows of a batch.

    The host writes a row's line when a reply begins; a step rewrites state, grants, draws and outputs.

    caps: of the reflection segments in order, UNLIMITED where there is none. lower: -1, or a cap
    for the reflection that is open. coming: -1, or a cap for the next one beside its own, which
    is taken where none is open.
    """

    state: Tensor  # [B, State.WIDTH] int32
    request: Tensor  # [B, Request.WIDTH] int32
    scale: Tensor  # [B, 2] float32: temperature, top_p
    seed: Tensor  # [B] int64: the 64 bits of the seed
    caps: Tensor  # [B, C] int32
    lower: Tensor  # [B] int32
    coming: Tensor  # [B] int32
    successor: Tensor  # [B, State.WIDTH] int32: the state after a discarded draw
    draws: Draws  # of B * SLOTS
    output: Tensor  # [B, Output.WIDTH] int32
    logprob: Tensor  # [B] float32, NaN where nothing was drawn

    @classmethod
    def allocate(
        cls, num_rows: int, num_caps: int, device: str | torch.device, sets: Tensor | None = None
    ) -> Rows:
        """Allocate idle rows. sets: of the programs that they will follow; None: these have none."""
        device = torch.device(device)

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        state = torch.tensor([first_state()] * num_rows, dtype=torch.int32, device=device).reshape(
            num_rows, StateColumn.WIDTH
        )
        state[:, StateColumn.IS_DONE] = Ending.IDLE
        return cls(
            state=state,
            request=ints(num_rows, RequestColumn.WIDTH),
            scale=torch.zeros(num_rows, 2, dtype=torch.float32, device=device),
            seed=torch.zeros(num_rows, dtype=torch.int64, device=device),
            caps=ints(num_rows, num_caps) + UNLIMITED,
            lower=ints(num_rows) - 1,
            coming=ints(num_rows) - 1,
            successor=torch.zeros_like(state),
            draws=Draws.allocate(SLOTS * num_rows, device, sets),
            output=ints(num_rows, OutputColumn.WIDTH),
            logprob=torch.zeros(num_rows, dtype=torch.float32, device=device),
        )

    def first(self, num_rows: int) -> Rows:
        """The first rows, in the same memory."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        draws = self.draws.first(SLOTS * num_rows)
        return Rows(**{name: part[:num_rows] for name, part in parts.items() if name != "draws"}, draws=draws)

    def begin(
        self,
        row: int,
        request: Sequence[int],
        temperature: float,
        top_p: float,
        seed: int,
        caps: Sequence[int] = (),
        state: Sequence[int] | None = None,
    ) -> None:
        """Put a reply into a row, at its start or where `state` says. request, state: the
        columns of Request and State.
        """
        num_caps = self.caps.shape[1]
        if len(caps) > num_caps:
            raise ValueError(f"a reply has {len(caps)} caps of reflections, the rows hold {num_caps}")
        filled = [*(min(cap, UNLIMITED) for cap in caps), *[UNLIMITED] * (num_caps - len(caps))]
        lines = (list(state or first_state()), list(request), filled)
        arrays = [*(np.array(line, np.int32) for line in lines), np.array([temperature, top_p], np.float32)]
        targets = (self.state, self.request, self.caps, self.scale)
        for tensor, line in zip(targets, to_device(arrays, self.state.device), strict=True):
            tensor[row].copy_(line, non_blocking=True)
        self.seed[row] = signed(seed)
        self.lower[row] = self.coming[row] = -1


_LANES = (
    128  # rows a program, one number for all batches; four warps: loads of a state's columns wait together
)


@jit
def _prepare_kernel(
    state: Ptr, request: Ptr, scale: Ptr, seed: Ptr, caps: Ptr, lower: Ptr, coming: Ptr, successor: Ptr, mask: Ptr,
    mask_scale: Ptr, key: Ptr, table: Ptr, forced: Ptr, samplings: Ptr, B: Count, C: Num, LANES: constexpr,
) -> None:  # fmt: skip
    prepare_rows(
        tl.program_id(0) * LANES + tl.arange(0, LANES), state, request, scale, seed, caps, lower, coming, successor, mask,
        mask_scale, key, table, samplings, B, C,
    )  # fmt: skip


@jit
def _advance_kernel(
    state: Ptr, request: Ptr, caps: Ptr, successor: Ptr, table: Ptr, forced: Ptr, drawn: Ptr, drawn_logprob: Ptr, output: Ptr,
    logprob: Ptr, B: Count, C: Num, LANES: constexpr,
) -> None:  # fmt: skip
    advance_rows(
        tl.program_id(0) * LANES + tl.arange(0, LANES), state, request, caps, successor, table, forced, drawn, drawn_logprob,
        output, logprob, B, C,
    )  # fmt: skip


def prepare(rows: Rows, programs: Programs) -> None:
    """Fill rows.draws and rows.successor; caps that the host has granted take effect."""
    num_rows, draws = len(rows.state), rows.draws
    launch(
        _prepare_kernel, (cdiv(num_rows, _LANES),), rows.state, rows.request, rows.scale, rows.seed, rows.caps, rows.lower,
        rows.coming, rows.successor, draws.mask, draws.scale, draws.key, programs.table, programs.forced, programs.samplings,
        num_rows, rows.caps.shape[1], LANES=_LANES, num_warps=4,
    )  # fmt: skip


def advance(rows: Rows, programs: Programs, drawn: Tensor, drawn_logprob: Tensor) -> None:
    """Advance by the drawn ids, [B, SLOTS] int32 (-1: the draw failed) and their
    log-probabilities; fill rows.output.
    """
    num_rows = len(rows.state)
    launch(
        _advance_kernel, (cdiv(num_rows, _LANES),), rows.state, rows.request, rows.caps, rows.successor, programs.table,
        programs.forced, drawn, drawn_logprob, rows.output, rows.logprob, num_rows, rows.caps.shape[1],
        LANES=_LANES, num_warps=4,
    )  # fmt: skip
