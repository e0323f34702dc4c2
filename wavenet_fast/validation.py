"""Turns msgspec's verdict on a decoded file into a sentence: the path, what was given there, what is possible."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

import msgspec
from msgspec import inspect

_LOCATION = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key in )?\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"Object (?P<verdict>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def explain(error: msgspec.ValidationError, kind: type, data: Any) -> str:
    """One sentence that begins with the path of the bad field. `error` came from converting `data` to `kind`."""
    found = _LOCATION.match(str(error))
    problem, path = (found["problem"], found["path"] or "") if found else (str(error), "")
    if error.__cause__ is not None:  # raised by a __post_init__, already a sentence that begins with its own path
        return f"{path}.{error.__cause__}" if path else str(error.__cause__)
    here, value = _descend(inspect.type_info(kind), data, path)
    field = _FIELD.match(problem)
    if field is None:
        return f"{path or 'the file'}: is {shorten(value)}; it must be {describe(here)}"
    prefix, name = f"{path}: " if path else "", field["name"]
    if field["verdict"] == "missing required":
        wanted = describe(_field(_choose(here, value), name) or here)
        return f'{prefix}lacks the field "{name}", {wanted}'
    known = _field_names(_choose(here, value))
    close = difflib.get_close_matches(name, known, 1)
    hint = f'did you mean "{close[0]}"?' if close else f"its fields are {', '.join(known)}"
    return f"{prefix}has no field {shorten(name)}; {hint}"


def describe(kind: inspect.Type) -> str:
    """What may stand in this place, in words."""
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        return ("an integer" if isinstance(kind, inspect.IntType) else "a number") + _range(kind)
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(json.dumps(value) for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        least, most = kind.min_length or 0, kind.max_length
        return "a list" + (f" of {least} to {most} entries" if most is not None else "")
    if isinstance(kind, inspect.UnionType):
        tags = [str(member.tag) for member in kind.types if isinstance(member, inspect.StructType)]
        if tags:
            return f"an object whose kind is one of {', '.join(json.dumps(tag) for tag in tags)}"
        return " or ".join(describe(member) for member in kind.types)
    if isinstance(kind, inspect.StructType):
        return "an object with the fields " + ", ".join(_field_names(kind))
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    return {"StrType": "a string", "NoneType": "null"}.get(type(kind).__name__, "an object")


def shorten(value: Any, limit: int = 60) -> str:
    """The value as JSON, cut so that a hostile file cannot fill the screen."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= limit else text[:limit] + "…"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        text = f" from {kind.ge:g} to {kind.le}"
    else:
        bounds = [("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt)]
        given = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        text = " " + " and ".join(given) if given else ""
    return text + (f", a multiple of {kind.multiple_of}" if kind.multiple_of else "")


def _descend(kind: inspect.Type, data: Any, path: str) -> tuple[inspect.Type, Any]:
    """Type and value at a path such as `model.head.classes` or `model.dilations[3]`."""
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        if index:
            kind, data = kind.item_type if isinstance(kind, inspect.VarTupleType) else kind, data[int(index)]
        else:
            kind, data = _field(_choose(kind, data), name) or kind, data.get(name)
        if isinstance(kind, inspect.UnionType) and len(kind.types) == 1:
            kind = kind.types[0]
    return kind, data


def _choose(kind: inspect.Type, data: Any) -> inspect.Type:
    """The member of a union of tagged objects that `data` names."""
    if isinstance(kind, inspect.UnionType) and isinstance(data, dict):
        for member in kind.types:
            if isinstance(member, inspect.StructType) and data.get(member.tag_field) == member.tag:
                return member
    return kind


def _field(kind: inspect.Type, name: str) -> inspect.Type | None:
    """Type of a field; for the tag of a union, the list of its tags as a literal."""
    if isinstance(kind, inspect.UnionType):
        tags = [m.tag for m in kind.types if isinstance(m, inspect.StructType) and m.tag_field == name]
        return inspect.LiteralType(tuple(tags)) if tags else None
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return next((field.type for field in fields if field.encode_name == name), None)


def _field_names(kind: inspect.Type) -> list[str]:
    if not isinstance(kind, inspect.StructType):
        return []
    return ([kind.tag_field] if kind.tag_field else []) + [field.encode_name for field in kind.fields]
