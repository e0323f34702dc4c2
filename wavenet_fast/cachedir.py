"""Where this package may leave files of its own between runs: results that can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "WAVENET_FAST_CACHE"


def cache_directory() -> Path | None:
    """The folder that the environment variable WAVENET_FAST_CACHE names, else `wavenet_fast` in the user's cache folder
    as the system has it; None where there is no home to keep it in. It need not exist yet."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    try:
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME", ""))
            if not root.is_absolute():  # also where it is empty; the XDG specification asks for this
                root = Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "wavenet_fast"
