"""Where a command leaves what it tells as JSON: looked at before the work, written after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..fileio import replacing, write_all


def check_place(named: str, path: str | os.PathLike[str]) -> None:
    """Raises `InputError` where no file can be put at `path`, which the user `named` so."""
    place = Path(path)
    if not os.fspath(path) or place.is_dir() or not place.absolute().parent.is_dir():
        raise InputError(f"{named}: is a folder, or lies in none; name a file in a folder that is there")


def write_json(path: str | os.PathLike[str], told: dict[str, Any]) -> None:
    with replacing(path) as file:
        write_all(file, (json.dumps(told, indent=1) + "\n").encode())
