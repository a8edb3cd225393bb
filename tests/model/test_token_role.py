"""The tags of the reflection weight: those of a batch and those of a device step are the same, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from innervoice.model.pages import PagePool, PageTable
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole, page_key, reply_tag
from innervoice_kernels.sampling.cursor import Rows
from innervoice_kernels.sampling.cursor_columns import Ending, StateColumn, TokenKind
from innervoice_kernels.sampling.step import RowFeed, StepInputs, begin_step_ref

CPU = torch.device("cpu")


def batch_tags(kind: TokenKind | None, log_weight: float) -> tuple[int, int]:
    """The query's and the key's tag of a token of the second reply, in a batch."""
    sequence = Sequence(PageTable(PagePool(1, 4)))
    sequence.begin_reply(0.0)
    number = sequence.begin_reply(log_weight)
    role = TokenRole.NEUTRAL if kind is None else TokenRole.of(kind)
    sequence.append(1, role, number)
    return sequence.query_tags()[0], sequence.key_tags()[0]


def step_tags(kind: TokenKind | None, log_weight: float) -> tuple[int, int]:
    """The same of a device step."""
    feed, key_tag = RowFeed.allocate(1, 1, CPU), torch.zeros(1, 4, dtype=torch.int32)
    feed.kind[0] = -1 if kind is None else int(kind)
    feed.reply[0], feed.page_table[0] = reply_tag(2, log_weight), 0
    state = Rows.allocate(1, 1, "cpu").state
    state[0, StateColumn.IS_DONE] = Ending.RUNNING
    inputs = StepInputs.allocate(1, 4, 2, torch.float32, CPU)
    angles = torch.zeros(8, 2)
    begin_step_ref(feed, state, torch.zeros(3, 4), angles, angles, key_tag, inputs)
    return int(inputs.query_tag[0]), int(key_tag[0, 0])


@pytest.mark.parametrize("kind", [None, *TokenKind])
def test_a_batch_and_a_device_step_tag_alike(kind: TokenKind | None) -> None:
    spoken, hidden = kind is not None and kind.is_spoken, kind is not None and kind.is_hidden
    assert batch_tags(kind, 0.1) == step_tags(kind, 0.1) == (2 * spoken, 2 * hidden)
    assert batch_tags(kind, 0.0) == step_tags(kind, 0.0) == (0, 0)


def test_pages_are_apart_by_role_reply_and_weight_where_one_is_at_work() -> None:
    roles = (TokenRole.HIDDEN, TokenRole.SPOKEN)
    keys = {page_key(role, n, math.log(w)) for role in roles for n in (1, 2) for w in (1.1, 1.2)}
    assert len(keys) == 8 and 0 not in keys
    assert page_key(TokenRole.NEUTRAL, 1, 0.1) == page_key(TokenRole.HIDDEN, 1, 0.0) == 0
