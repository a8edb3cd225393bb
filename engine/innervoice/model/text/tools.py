"""The list of tools in a prompt: in the chat template's variable, or in the system text where it has none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from innervoice.model.text.dialogue import Role
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer

TOOLS = "tools"
"""The variable of a chat template that takes tools."""

OBSERVATION = "<|observation|>"
"""The token that a tool's result stands behind in GLM-4's dialogues."""

_KEYS = ("name", "description", "parameters", "strict")
_SYSTEM = (
    "# Tools\n\nYou may call these functions, described by one JSON object a line:\n{}\nA call is a JSON object with the "
    'function\'s name and its arguments: {{"name": ..., "arguments": {{...}}}}'
)


def read_tools(given: Iterable[Mapping[str, Any]], where: str = "tools") -> list[dict[str, Any]]:
    """Functions as OpenAI's chat completions have them; the flat form of its Realtime API is understood too.

    Raises ValueError, which names the field, for another type of tool, a missing name and what is no JSON value.
    """
    made: list[dict[str, Any]] = []
    for i, tool in enumerate(given):
        if tool.get("type", "function") != "function":
            raise ValueError(f"{where}[{i}].type is {str(tool['type'])[:80]!r}: it must be 'function'")
        own = tool.get("function", tool)
        name = own.get("name") if isinstance(own, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}[{i}] has no name: give a function with a name")
        function = {key: own[key] for key in _KEYS if own.get(key) is not None}
        try:
            made.append({"type": "function", "function": json.loads(json.dumps(function))})
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"{where}[{i}] is not a JSON value: write it as JSON has it") from None
    return made


def function_of(tool: Mapping[str, object]) -> Mapping[str, object]:
    """The function of a tool that `read_tools` gave."""
    function = tool["function"]
    assert isinstance(function, Mapping), "read_tools checks it"
    return function


def reads_tools(tokenizer: TextTokenizer) -> bool:
    """Whether the checkpoint's chat template has a variable for tools."""
    chat = tokenizer.chat if isinstance(tokenizer, JsonTokenizer) else None
    return chat is not None and TOOLS in chat.variables


def check_marks(tokenizer: TextTokenizer, tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where tools hold a mark of the prompt, which a template would take for its own."""
    found = None
    if isinstance(tokenizer, JsonTokenizer):
        found = tokenizer.find_mark(json.dumps(tools, ensure_ascii=False))
    if found is not None:
        raise ValueError(
            f"tools hold {found!r}, which is a mark between parts of this model's prompt: take it out"
        )


def with_tools(system: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
    """A system text with the tools behind it."""
    lines = "\n".join(json.dumps(function_of(tool), ensure_ascii=False) for tool in tools)
    told = _SYSTEM.format(lines)
    return told if system is None or not system.strip() else f"{system}\n\n{told}"


def result_role(tokenizer: TextTokenizer) -> Role:
    """The role of a message with a tool's result: "tool" where the template takes it, else system or user."""
    if not isinstance(tokenizer, JsonTokenizer):
        return "system" if tokenizer.special(OBSERVATION) is None else "tool"
    roles: tuple[Role, ...] = ("tool", "system")
    asked = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    chat = tokenizer.chat
    if chat is None:
        return "user"
    for role in roles:
        try:
            chat.dialogue([*asked, {"role": role, "content": "c"}])
        except ValueError:
            continue
        return role
    return "user"
