"""Fresh interpreters for tests. They start in this folder, never in the repository root: `python -c` puts the folder
it starts in on the path, and in the root the sources would hide the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def python(code: str, *arguments: object, **environment: str) -> str:
    """Standard output of `code`; an assertion with its standard error if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=HERE, env=os.environ | environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
