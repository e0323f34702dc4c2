"""Tables of compiled kernels, one row a kernel: what its machine code is, beside the compiler that wrote it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from wavenet_fast.backends.selftest import sources_hash

TARGETS = (80, 86, 89, 90, 100, 120)

# Families of SASS mnemonics. HMMA, IMMA: mma.sync; the others are the units of sm_90 and sm_100 that take larger tiles.
TENSOR = ("HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCQMMA")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)

Row = dict[str, Any]
Case = TypeVar("Case")


def told_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def code_counts(disassembly: str) -> Row:
    """Of what nvdisasm writes: the instructions that stand in the machine code, by the kinds that matter."""
    counts = Counter(INSTRUCTION.findall(disassembly))
    return {
        "spill_stores": counts["STL"],
        "spill_loads": counts["LDL"],
        "tensor": {name: counts[name] for name in TENSOR if counts[name]},
        "barriers": counts["BAR"],
        "copies_ahead": counts["LDGSTS"],
        "instructions": counts.total() - counts["NOP"],
    }


def code_faults(row: Mapping[str, Any]) -> list[str]:
    """What of a row no version of the compiler may do."""
    found = []
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"{row['shared_bytes']} bytes of shared memory; the target has {row['shared_limit']}")
    if spills := row["spill_stores"] + row["spill_loads"]:
        found.append(f"{spills} loads and stores of spilled registers")
    tensor = sum(row["tensor"].values())
    if row["dtype"] == "fp32" and tensor:
        found.append(f"{tensor} tensor-core instructions, which round fp32")
    return found


def differences(row: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Where a row is not the recorded one."""
    return [f"{key} {row[key]}, recorded {recorded[key]}" for key in row if row[key] != recorded[key]]


@dataclass(frozen=True)
class Table(Generic[Case]):
    """A table in a file.

    case      dataclass that names a row; its fields begin the row
    cases     all of them, in the file's order
    compiled  makes a row; a function that another process can be sent
    compiler  everything that the machine code depends on besides the kernels
    """

    path: Path
    case: type[Case]
    cases: Callable[[], list[Case]]
    compiled: Callable[[Case], Row]
    compiler: Callable[[], dict[str, str]]

    def recorded(self, path: Path | None = None) -> tuple[dict[str, str], dict[Case, Row]]:
        """The compiler that the table was made with, and its rows. Raises `FileNotFoundError`."""
        told = json.loads((path or self.path).read_text(encoding="utf-8"))
        names = [field.name for field in fields(self.case)]  # type: ignore[arg-type]
        return told["compiler"], {self.case(**{name: row[name] for name in names}): row for row in told["kernels"]}

    def rows(self, chosen: list[Case], path: Path | None, jobs: int) -> Iterator[Row]:
        """Compiled by so many processes. Rows that the file holds of these very kernels and compilers are taken from
        it, and it is whole after every row, so that a run may be ended and begun again."""
        known: dict[Case, Row] = {}
        if path is not None and path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            if (told["compiler"], told.get("sources")) == (self.compiler(), sources_hash()):
                known = self.recorded(path)[1]
        # Begun afresh, not forked: torch has threads.
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            pending = {case: pool.submit(self.compiled, case) for case in chosen if case not in known}
            try:
                for case in tqdm(chosen, "compile", disable=None, unit=" kernels"):
                    known[case] = known[case] if case in known else pending[case].result()
                    if path is not None and case in pending:
                        self.write(path, known)
                    yield known[case]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def write(self, path: Path, rows: Mapping[Case, Row]) -> None:
        """The table in place of what was there, all at once, a line a row."""
        lines = ",\n".join(json.dumps(rows[case]) for case in self.cases() if case in rows)
        head = f'"compiler": {json.dumps(self.compiler())},\n"sources": "{sources_hash()}"'
        beside = path.with_name(path.name + ".new")
        beside.write_text(f'{{{head},\n"kernels": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(beside, path)
