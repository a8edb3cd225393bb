"""The feeds of a request, and the ids of the items that are put into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Protocol

import numpy as np

from innervoice.fields import Encodable, FieldType
from innervoice.model.text import TextTokenizer, ids_within
from innervoice.model.text.dialogue import SpokenCodes
from innervoice.runtime.feed import Feed, FeedItem
from innervoice.schedule import Program
from innervoice.types import Ids, Prompt, Speech, Text, TokenEvent, TokenIds, Vocabulary


class ItemReader(Protocol):
    """The part of a RequestBuilder that reads an item: its tokenizer, ids, checks and speech tokenizer."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's ids by their use."""
        ...

    def check_text(self, text: str, name: str) -> None:
        """Raise ValueError for a text that is too long whatever its tokens are."""
        ...

    def part(self, content: Prompt) -> object:
        """A recording as speech codes. Raises ValueError."""
        ...


def feeds_of(
    program: Program, given: Mapping[str, Feed], spell: Callable[[str, bool, FeedItem], Sequence[int]]
) -> dict[str, Feed]:
    """The feeds of a request, each for a name of its schedule, which spell their items from now on.

    spell: a feed's name, whether it must give speech ids, and an item -> ids. Raises ValueError for a feed that is
    missing, and for one that nothing takes from.
    """
    names = program.schedule.feeds
    for name in names:
        if name not in given:
            raise ValueError(
                f"the schedule takes from the feed {name!r}, which the request lacks: give feeds={{{name!r}: Feed()}}"
            )
    for name, feed in given.items():
        if name not in names:
            raise ValueError(f"feeds holds {name!r}, and no segment of the schedule takes from it")
        is_spoken = any(one.feed == name and one.voice_as == "speech" for one in program.schedule.segments)
        feed.spell_by(partial(spell, name, is_spoken))
    return dict(given)


def fed_ids(requests: ItemReader, name: str, is_spoken: bool, item: FeedItem) -> Sequence[int]:
    """The ids of an item. Raises ValueError for what its segments cannot take; is_spoken: all but speech ids."""
    where, vocabulary = f"the feed {name!r}", requests.vocabulary
    speech = vocabulary.speech or (0, 0)
    ids: Sequence[int]
    if isinstance(item, Speech):
        ids = [speech[0] + code for code in item.codes.tolist()]
    elif isinstance(item, Text | TokenEvent | str):
        text = item if isinstance(item, str) else item.text
        requests.check_text(FieldType.of(Annotated[str, Encodable()]).read(text, where), where)
        ids = ids_within(requests.tokenizer, text)
    elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray):
        codes = requests.part(item)
        assert isinstance(codes, SpokenCodes), "samples become codes"
        ids = [speech[0] + code for code in codes.codes]
    elif isinstance(item, Ids):
        ids = item.ids
    elif isinstance(item, np.ndarray) and item.dtype.kind == "f":
        raise ValueError(f"{where} was given samples without their rate: give (samples, rate)")
    else:
        ids = FieldType.of(TokenIds).read(item if isinstance(item, Iterable) else [item], where)
    low, high = speech if is_spoken else (0, vocabulary.size)
    wrong = [token for token in ids if not low <= token < high]
    if wrong:
        what = "speech ids" if is_spoken else "the vocabulary"
        raise ValueError(f"{where} was given id {wrong[0]}, outside {what} [{low}, {high})")
    return ids
