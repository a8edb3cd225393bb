"""Options that commands share, and the options of an engine as options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from innervoice.api.options import FIELDS, EngineOptions
from innervoice.schedule import PRESETS

Command = Callable[..., None]
ModelOption = Annotated[
    str, typer.Option(help="Checkpoint directory, the parent of all three directories, or a hub id.")
]
ScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help=f"A .json file, or one of {', '.join(PRESETS)}.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def with_engine_options(*names: str, changes_only: bool = False) -> Callable[[Command], Command]:
    """Give a command some fields of `EngineOptions` as options; it gets their values as the dict `chosen`.

    changes_only: no option has a default, and `chosen` holds those that were given.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "chosen"]

        @wraps(command)
        def run(**given: Any) -> None:
            chosen = {name: _read(given.pop(name)) for name in names}
            if changes_only:
                chosen = {name: value for name, value in chosen.items() if value is not None}
            command(**given, chosen=chosen)

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
                *(_parameter(name, changes_only) for name in names),
            ]
        )
        return run

    return decorate


def _parameter(name: str, changes_only: bool) -> inspect.Parameter:
    """A field as a parameter that Typer reads: a flag that is off or a choice of on
    and off, a choice, or a value.
    """
    field = FIELDS[name]
    choices = ("on", "off") if field.default is True else field.metadata["choices"]
    default = "on" if field.default is True else field.default
    option = typer.Option(f"--{name.replace('_', '-')}", help=field.metadata["doc"])
    kind: Any = Literal[choices] if choices else _plain_type(get_type_hints(EngineOptions)[name])
    if changes_only or default is None:
        kind |= None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, option],
        default=None if changes_only else default,
    )


def _plain_type(hint: Any) -> type:
    """The type among those of a field that a word of the command line becomes."""
    return next(kind for kind in (bool, int, float, str) if kind in (hint, *get_args(hint)))


def _read(value: Any) -> Any:
    """A word of the command line as the field's value."""
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value
