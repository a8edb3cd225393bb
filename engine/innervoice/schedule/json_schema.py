"""Refusals of JSON schemas that outlines-core reads and does not hold: what it makes would not fit them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from innervoice.schedule.program import ScheduleError

_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "$comment"}
_OF_TYPES = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"additionalProperties"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
# What decides the rest of a schema, in the library's order, and the keywords that it holds beside.
_FORMS = {
    "properties": {"type", "required", "additionalProperties"},
    "anyOf": set[str](),
    "prefixItems": {"type", "items"},
    "enum": {"type"},
    "const": {"type"},
    "$ref": set[str](),
}
_FORMATS = ("date", "date-time", "uuid")
_DEPTH = 4  # references within references that the library follows
_UNSAFE = re.compile(r'"|\\[^dw.\-+*?()\[\]{}|^$/]|(?<!\\)\.|\[\^|[\x00-\x1f]')


def check_schema(schema: Any, where: str) -> None:
    """Raise ScheduleError, which names the keyword, for a schema whose texts may not fit it."""
    try:
        _check(schema, where, schema, ())
    except RecursionError:
        raise ScheduleError(f"{where} has schemas within schemas without end: write fewer") from None


def _check(schema: Any, where: str, root: Any, refs: tuple[str, ...]) -> None:
    if not isinstance(schema, Mapping):
        raise ScheduleError(f"{where} is {str(schema)[:80]!r}: write a JSON schema, which is an object")
    form = next((name for name in _FORMS if name in schema), None)
    if form is None and "type" not in schema:
        raise ScheduleError(f"{where} has no type: write one, such as string or object, or enum or anyOf")
    types = _types(schema, where)
    held = {form} | _FORMS[form] if form else {"type"}.union(*(_OF_TYPES[one] for one in types))
    for name in schema:
        if name not in held and name not in _NOTES:
            raise ScheduleError(
                f"{where}.{name} is a keyword that outlines-core does not hold here: leave it out"
            )
    if form is None:
        _check_types(schema, where, root, refs, types)
    elif form == "properties":
        _check_properties(schema, where, root, refs)
    elif form == "$ref":
        _check_reference(schema, where, root, refs)
    elif form in ("anyOf", "prefixItems"):
        _check_all(schema[form], f"{where}.{form}", root, refs)
    else:
        _check_values(schema["enum"] if form == "enum" else [schema["const"]], f"{where}.{form}", types)


def _types(schema: Mapping[str, Any], where: str) -> Sequence[str]:
    given = schema.get("type", [])
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, Sequence) or not all(isinstance(one, str) and one in _OF_TYPES for one in found):
        raise ScheduleError(f"{where}.type is {given!r}: use {', '.join(_OF_TYPES)}, or several of them")
    return found


def _check_types(
    schema: Mapping[str, Any], where: str, root: Any, refs: tuple[str, ...], types: Sequence[str]
) -> None:
    lengths = {"minLength", "maxLength"} & schema.keys()
    if bool(lengths) + ("pattern" in schema) + ("format" in schema) > 1:
        raise ScheduleError(
            f"{where} has two of length, pattern and format: outlines-core holds one, leave one out"
        )
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
        for name in (low, high):
            value = schema.get(name, 0)
            if type(value) is not int or value < 0:
                raise ScheduleError(f"{where}.{name} is {value!r}: it must be 0 or more")
        if schema.get(high, schema.get(low, 0)) < schema.get(low, 0):
            raise ScheduleError(f"{where}.{high} is below {low}: nothing can fit both")
    pattern, form = schema.get("pattern", ""), schema.get("format", "date")
    if not isinstance(pattern, str) or _UNSAFE.search(pattern) or _has_bare_choice(pattern):
        raise ScheduleError(
            f"{where}.pattern is {pattern!r}, which may write what no JSON string holds: use classes of plain characters, "
            "and alternatives in parentheses"
        )
    if form not in _FORMATS:
        raise ScheduleError(f"{where}.format is {form!r}: outlines-core holds {', '.join(_FORMATS)}")
    for name in {"items", "additionalProperties"} & schema.keys():
        if not (name == "additionalProperties" and schema[name] is True):
            _check(schema[name], f"{where}.{name}", root, refs)


def _has_bare_choice(pattern: str) -> bool:
    """Whether alternatives stand outside of parentheses."""
    depth = 0
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        depth += (part == "(") - (part == ")")
        if part == "|" and depth == 0:
            return True
    return False


def _check_properties(schema: Mapping[str, Any], where: str, root: Any, refs: tuple[str, ...]) -> None:
    properties, required = schema["properties"], schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise ScheduleError(f"{where}.properties is {str(properties)[:80]!r}: write an object")
    if "object" not in _types({"type": "object"} | dict(schema), where):
        raise ScheduleError(f"{where}.type is {schema['type']!r}: with properties it must be object")
    for name in required if isinstance(required, Sequence) else []:
        if name not in properties:
            raise ScheduleError(
                f"{where}.required names {name!r}, which is none of the properties: add it there"
            )
    for name, inner in properties.items():
        if not isinstance(name, str) or re.search(r'["\\\x00-\x1f]', name):
            raise ScheduleError(
                f"{where}.properties has the name {name!r}: use one without quotes and escapes"
            )
        _check(inner, f"{where}.properties.{name}", root, refs)


def _check_all(schemas: Any, where: str, root: Any, refs: tuple[str, ...]) -> None:
    if not isinstance(schemas, Sequence) or isinstance(schemas, str) or not schemas:
        raise ScheduleError(f"{where} is {str(schemas)[:80]!r}: write a list of schemas")
    for place, inner in enumerate(schemas):
        _check(inner, f"{where}[{place}]", root, refs)


def _check_reference(schema: Mapping[str, Any], where: str, root: Any, refs: tuple[str, ...]) -> None:
    reference, found = schema["$ref"], root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise ScheduleError(
            f"{where}.$ref is {reference!r}: only places within the schema are known, such as #/$defs/x"
        )
    if reference in refs or len(refs) == _DEPTH:
        raise ScheduleError(
            f"{where}.$ref is {reference!r}, which leads to itself or deeper than {_DEPTH} references: write it out"
        )
    for part in reference[2:].split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None:
        raise ScheduleError(f"{where}.$ref is {reference!r}, which the schema does not have")
    _check(found, f"{where}.$ref", root, (*refs, reference))


def _check_values(values: Any, where: str, types: Sequence[str]) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ScheduleError(f"{where} is {str(values)[:80]!r}: write a list of values")
    for value in values:
        own = _type_of(value)
        fits = own in types or (own == "integer" and "number" in types)
        if own is None or (types and not fits):
            raise ScheduleError(
                f"{where} holds {str(value)[:80]!r}, which is no plain value of the schema's type"
            )


def _type_of(value: Any) -> str | None:
    """The JSON type of a plain value, None: it is an object or a list."""
    for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else None
