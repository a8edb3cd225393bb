"""The format of a checkpoint's weights, and its entry in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any, Literal, get_args

from innervoice.checkpoint.files import refuse_unknown, require

Format = Literal["int8", "int4", "fp8"]
KEY = "quantization_config"  # of config.json; where other projects describe their formats too
METHOD = "innervoice"
GROUPS = (32, 64, 128)  # columns that share an int4 scale
DEFAULT_GROUP = 32


@dataclass(frozen=True)
class Quantization:
    """The format of the weights that are multiplied.

    group: columns that share a scale, of int4 (None: 32); symmetric: int4 without minimum; head:
    the output layer too, and with it an embedding that is the output layer. Raises ValueError
    for what does not fit together.
    """

    format: Format
    group: int | None = None
    symmetric: bool = False
    head: bool = True

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ValueError(f"quantization {self.format!r} is unknown: use {', '.join(get_args(Format))}")
        if self.format != "int4" and (self.group is not None or self.symmetric):
            raise ValueError(
                f"{self.format} has one scale an output and no minimum: group and symmetric are int4's, leave them"
            )
        if self.format == "int4" and self.group is None:
            object.__setattr__(self, "group", DEFAULT_GROUP)
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(
                f"a group of {self.group} columns does not fit: use {', '.join(map(str, GROUPS))}"
            )

    def to_config(self) -> dict[str, Any]:
        """The entry of config.json that describes the format."""
        return {"quant_method": METHOD, **asdict(self)}

    def __str__(self) -> str:
        words: list[str] = [self.format]
        if self.group is not None:
            words.append(f"in groups of {self.group}{', symmetric' if self.symmetric else ''}")
        return " ".join([*words, *([] if self.head else ["but for the output layer"])])


def read_quantization(
    data: Mapping[str, Any], source: str | PathLike[str]
) -> tuple[dict[str, Any], Quantization | None]:
    """config.json without what it says of our formats, and that; None where it says nothing,
    or speaks of another's format.

    Raises ValueError for a description that cannot be.
    """
    found = data.get(KEY)
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return dict(data), None
    where = f"{source}: {KEY}"
    refuse_unknown(found, ("quant_method", *(field.name for field in fields(Quantization))), where)
    try:
        made = Quantization(
            require(found, "format", where, str),
            None if found.get("group") is None else require(found, "group", where, int),
            require(found, "symmetric", where, bool) if "symmetric" in found else False,
            require(found, "head", where, bool) if "head" in found else True,
        )
    except ValueError as error:
        raise ValueError(f"{error}" if str(source) in str(error) else f"{where}: {error}") from None
    return {name: value for name, value in data.items() if name != KEY}, made


def as_quantization(wanted: str | Quantization | None) -> Quantization | None:
    """A format by its name, or as it is. Raises ValueError for an unknown name."""
    return Quantization(wanted) if isinstance(wanted, str) else wanted  # type: ignore[arg-type]
