"""JSON from untrusted files: no duplicate keys, no NaN, bounded depth, only text that can be printed again."""

from __future__ import annotations

import json
import math
from typing import Any

from .errors import ConfigError

MAX_DEPTH = 32


def parse(data: bytes, where: str) -> Any:
    """The value in UTF-8 `data`; raises `ConfigError` that begins with `where`."""
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        _check(value, 1)
    except RecursionError:
        raise ConfigError(f"{where}: is nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!a} is there twice in one object; keep one")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}; only finite numbers are possible")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"holds {text[:40]}, which is beyond double precision; only finite numbers are possible")
    return number


def _integer(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"holds an integer of {len(text)} digits; no field needs more than 20")
    return int(text)


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("holds half of a surrogate pair (\\ud800 … \\udfff), which is no character; remove it")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check(key, depth)
            _check(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, depth + 1)
