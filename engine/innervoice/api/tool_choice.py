"""The choice among the tools of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def read_tool_choice(
    given: str | Mapping[str, object], names: Sequence[object]
) -> str | Mapping[str, object]:
    """A choice of tools as "auto", "none", "required" or {"name": ...}.

    Raises ValueError for another, and for a function that is not among the tools.
    """
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if isinstance(function, Mapping):
        name = function.get("name")
        if name not in names:
            known = ", ".join(map(str, names)) or "no function"
            raise ValueError(
                f"tool_choice names {str(name)[:80]!r}, and tools hold {known}: name one of them"
            )
        return {"name": name}
    if given not in ("auto", "none", "required"):
        raise ValueError(
            f"tool_choice is {str(given)[:80]!r}: use 'auto', 'none', 'required' or the name of a function in an object"
        )
    if given == "required" and not names:
        raise ValueError("tool_choice is 'required' without tools: give tools")
    return given
