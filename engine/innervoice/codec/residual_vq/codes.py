"""Codes of a sound: one row of ids a codebook, in memory and as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from innervoice.fields import checked
from innervoice.files import check_readable, replacing
from innervoice.types import Samples

IdRows = npt.NDArray[np.int64]
_FORMAT = "innervoice codes 1"


@dataclass(frozen=True)
class Codes:
    """ids: a row [T] int64 a codebook; SNAC's rows have different lengths. kind: the codec's name.

    scales: loudness of each chunk, of EnCodec 48 kHz. num_samples: how long the sound was, None: not known,
    nothing is cut.
    """

    kind: str
    ids: tuple[IdRows, ...]
    scales: Samples | None = None
    num_samples: int | None = None

    @property
    def num_codebooks(self) -> int:
        """Rows of ids."""
        return len(self.ids)

    @checked
    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError."""
        tensors = {f"ids.{index}": np.ascontiguousarray(row) for index, row in enumerate(self.ids)}
        if self.scales is not None:
            tensors["scales"] = np.ascontiguousarray(self.scales)
        about = {
            "format": _FORMAT,
            "kind": self.kind,
            "num_samples": "" if self.num_samples is None else str(self.num_samples),
        }
        with replacing(path) as part:
            part.write_bytes(save(tensors, metadata=about))

    @classmethod
    @checked
    def load(cls, path: str | PathLike[str]) -> Codes:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        check_readable(path, "name a file of codes")
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is no file of codes ({error}): make one with `innervoice codec encode`"
            ) from None
        rows = [tensors.get(f"ids.{index}") for index in range(len(tensors))]
        ids = tuple(row for row in rows if row is not None)
        if (
            about.get("format") != _FORMAT
            or not ids
            or any(row.dtype != np.int64 or row.ndim != 1 for row in ids)
        ):
            raise ValueError(f"{path} is no file of codes: make one with `innervoice codec encode`")
        length = about.get("num_samples", "")
        return cls(
            about.get("kind", ""), ids, tensors.get("scales"), int(length) if length.isdigit() else None
        )


@dataclass(frozen=True)
class Grid:
    """The shape of a codec's codes.

    strides: frames that share a code, by codebook; chunk_frames: frames a scale.
    """

    kind: str
    size: int
    strides: tuple[int, ...]
    all_needed: bool = False
    chunk_frames: int | None = None

    def rows(self, codes: Codes) -> IdRows:
        """Check codes and repeat them to one rate: [K, T]. Raises ValueError with the fault."""
        if codes.kind != self.kind:
            raise ValueError(
                f"the codes are of {codes.kind or 'no codec'} and this is {self.kind}: "
                "decode them with their own codec"
            )
        num, most = len(codes.ids), len(self.strides)
        if num == 0 or num > most or (self.all_needed and num != most):
            wanted = str(most) if self.all_needed or most == 1 else f"1 to {most}"
            raise ValueError(
                f"the codes have {num} codebooks, {self.kind} has {wanted}: give one row of ids a codebook"
            )
        rows = [self._row(index, row) for index, row in enumerate(codes.ids)]
        lengths = {len(row) for row in rows}
        if len(lengths) != 1:
            counts = ", ".join(str(len(row)) for row in codes.ids)
            raise ValueError(
                f"the codebooks' rows have {counts} ids, which is not the same time: "
                f"expected strides {self.strides[:num]}"
            )
        if self.chunk_frames is not None:
            self._check_scales(codes, lengths.pop())
        return np.stack(rows)

    def unrows(self, rows: IdRows) -> tuple[IdRows, ...]:
        """[K, T] to a row a codebook."""
        return tuple(
            np.ascontiguousarray(row[::stride]) for row, stride in zip(rows, self.strides, strict=False)
        )

    def _row(self, index: int, row: IdRows) -> IdRows:
        array = np.asarray(row)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"codebook {index}: "
                f"ids are {array.dtype} of shape {list(array.shape)}, expected whole numbers [T]"
            )
        wrong = (array < 0) | (array >= self.size)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(f"codebook {index}: id {place} is {array[place]}, expected 0 to {self.size - 1}")
        return array.astype(np.int64).repeat(self.strides[index])

    def _check_scales(self, codes: Codes, frames: int) -> None:
        assert self.chunk_frames is not None
        chunks = -(-frames // self.chunk_frames)
        found = 0 if codes.scales is None else len(codes.scales)
        if found != chunks:
            raise ValueError(
                f"the codes have {found} scales for {chunks} chunks of {self.chunk_frames} frames: "
                "expected one each"
            )


def joined(kind: str, parts: Sequence[Codes], num_samples: int | None) -> Codes:
    """Parts of one sound, one after the other."""
    ids = tuple(np.concatenate(rows) for rows in zip(*(part.ids for part in parts), strict=True))
    scales = [part.scales for part in parts if part.scales is not None]
    return Codes(kind, ids, np.concatenate(scales) if scales else None, num_samples)
