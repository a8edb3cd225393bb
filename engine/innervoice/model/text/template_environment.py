"""The Jinja environment that chat templates are rendered in, a sandbox. Imported when a template is read."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _GenerationBlock(Extension):
    """{% generation %} marks replies for training; here it is its content, whose variables are its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Make the environment that templates on the hub are written for: transformers' settings, filters, functions."""
    extensions: list[str | type[Extension]] = ["jinja2.ext.loopcontrols", _GenerationBlock]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime.now().strftime}
    return environment


def variables_of(environment: jinja2.Environment, template: str) -> set[str]:
    """The names that a template reads and does not set. Raises jinja2.TemplateError."""
    return meta.find_undeclared_variables(environment.parse(template))
