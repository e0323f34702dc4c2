"""The built library: instructions that not every processor has stay inside the code of their own instruction set."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest

from wavenet_fast import _engine

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
# A VEX- or EVEX-encoded instruction, or one on wide registers or tiles.
WIDE = re.compile(r"\t(v[a-z]+[a-z0-9]*|tile\w+|ldtilecfg|tdp\w+)\s|%[yz]mm|%tmm")
OWN = re.compile(r"wavenet::(avx\w+|amx)::")


def wide_functions() -> dict[str, str]:
    """Function → its first wide instruction, of the extension module."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", _engine.__file__], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    name = ""
    for line in listing.splitlines():
        if match := FUNCTION.match(line):
            name = match[1]
        elif name not in found and WIDE.search(line):
            found[name] = line.strip()
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")
def test_no_wide_instruction_outside_the_code_of_its_set() -> None:
    found = wide_functions()
    sets = {match[1] for name in found if (match := OWN.search(name))}
    assert sets >= {"avx2", "avx512", "avx512vnni", "avx512bf16", "amx"}, "the library has lost its symbols"
    strays = {name: line for name, line in found.items() if not OWN.search(name)}
    assert not strays
