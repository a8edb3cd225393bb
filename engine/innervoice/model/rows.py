"""Embedding rows: prompt items that the model takes as they are, in place of the embedding of an id."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from innervoice.fields import KeptInt

if TYPE_CHECKING:
    from torch import Tensor

_ROWS, _ROW = "rows", "row"


class EmbeddingRows:
    """Rows for one stretch of a prompt, such as the encoder's output for a recording.

    values: [N, D] float32 on the host, D being the model's hidden size. digest: names the content; rows of equal
    digest and index are taken to be equal, so their pages are shared. Without one it is that of the values.
    Raises ValueError for values of another shape, and for some that are no finite numbers.
    """

    def __init__(self, values: Tensor | np.ndarray, digest: bytes | None = None) -> None:
        given = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
        made = np.ascontiguousarray(given, np.float32)
        if made.ndim != 2 or not made.size:
            raise ValueError(f"embedding rows have the shape {made.shape}: give [N, D], N and D above 0")
        if not np.isfinite(made).all():
            raise ValueError("embedding rows hold values that are no finite numbers: check what made them")
        self.values: npt.NDArray[np.float32] = made
        if digest is None:
            shape = struct.pack("<qq", *made.shape)
            digest = hashlib.blake2b(shape + made.tobytes(), digest_size=16).digest()
        self.digest = bytes(digest)

    def __len__(self) -> int:
        return len(self.values)

    def items(self, token: int) -> list[EmbeddingRow]:
        """The rows as items of a prompt. token: the id that stands for each of them where a number is wanted."""
        return [EmbeddingRow(token, self, index) for index in range(len(self))]


class EmbeddingRow(KeptInt):
    """One row as an item of `Ids` or of a sequence, among plain ids.

    As a number it is the id that stands for it. It equals no plain id, and another row if digest, index and id
    are the same.
    """

    block: EmbeddingRows
    index: int

    def __new__(cls, token: int, block: EmbeddingRows, index: int) -> EmbeddingRow:
        """Make the item. Raises ValueError for an index that the block does not have."""
        if not 0 <= index < len(block):
            raise ValueError(f"row {index} is not there: the block has {len(block)} rows")
        made = super().__new__(cls, token)
        made.block, made.index = block, index
        return made

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The row [D] float32."""
        row: npt.NDArray[np.float32] = self.block.values[self.index]
        return row

    @property
    def page_key(self) -> int:
        """All that its keys and values depend on beside what stands before it: a negative number of 64 bits.

        Keys of tokens are not negative, so neither is taken for the other.
        """
        mixed = hashlib.blake2b(self.block.digest + struct.pack("<q", self.index), digest_size=8).digest()
        return -(int.from_bytes(mixed, "little") >> 1) - 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingRow):
            return False
        is_same = self.index == other.index and self.block.digest == other.block.digest
        return is_same and int(self) == int(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((int(self), self.block.digest, self.index))

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingRow, (int(self), self.block, self.index)

    def __copy__(self) -> EmbeddingRow:
        return self

    def __deepcopy__(self, memo: object) -> EmbeddingRow:
        return self


def rows_among(ids: Iterable[int]) -> Iterator[tuple[int, EmbeddingRow]]:
    """Place and item of each row among some ids."""
    return ((place, one) for place, one in enumerate(ids) if isinstance(one, EmbeddingRow))


def with_rows_written(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values in whose lists rows may stand, with each as {"row": [id, block, index]}, and the blocks under
    "rows"; without a row the values as they are.
    """
    blocks: dict[bytes, tuple[int, EmbeddingRows]] = {}

    def written(value: Any) -> Any:
        if isinstance(value, EmbeddingRow):
            number, _ = blocks.setdefault(value.block.digest, (len(blocks), value.block))
            return {_ROW: [int(value), number, value.index]}
        if isinstance(value, dict):
            return {key: written(item) for key, item in value.items()}
        return [written(item) for item in value] if isinstance(value, list | tuple) else value

    made = written(values)
    if not blocks:
        return values
    return {**made, _ROWS: [_block_to_json(block) for _, block in blocks.values()]}


def with_rows_read(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read what `with_rows_written` gave. Raises ValueError for blocks and rows of another form."""
    if _ROWS not in values:
        return values
    given = values[_ROWS]
    blocks = [_block_from_json(one) for one in (given if isinstance(given, list) else [None])]

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.keys() == {_ROW}:
                return _row_from_json(value[_ROW], blocks)
            return {key: read(item) for key, item in value.items()}
        return [read(item) for item in value] if isinstance(value, list) else value

    return {key: read(item) for key, item in values.items() if key != _ROWS}


def is_id(value: object) -> bool:
    """Whether a value is a plain integer or a row: what a list of ids may hold."""
    return type(value) in (int, EmbeddingRow)


def _block_to_json(block: EmbeddingRows) -> dict[str, Any]:
    data = block.values.astype("<f4").tobytes()
    return {
        "digest": block.digest.hex(),
        "shape": list(block.values.shape),
        "data": base64.b64encode(data).decode("ascii"),
    }


def _block_from_json(values: Any) -> EmbeddingRows:
    try:
        num, width = values["shape"]
        data = np.frombuffer(base64.b64decode(values["data"], validate=True), "<f4").reshape(num, width)
        return EmbeddingRows(data.copy(), bytes.fromhex(values["digest"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"embedding rows cannot be read ({error}): export again") from None


def _row_from_json(values: Any, blocks: list[EmbeddingRows]) -> EmbeddingRow:
    is_row = isinstance(values, list) and len(values) == 3 and all(type(one) is int for one in values)
    if not is_row or not 0 <= values[1] < len(blocks):
        raise ValueError(
            f"an embedding row is {str(values)[:80]}: it must be an id, a block's number and an index"
        )
    token, number, index = values
    return EmbeddingRow(token, blocks[number], index)
