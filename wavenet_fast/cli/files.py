"""Which files to read and where each answer goes: single files, folders that keep their tree, stdin and stdout.

One rule for every command: OUT is a folder where it is one already, ends in a slash, or must hold several answers;
else it is a file, and "-" is stdout. An answer that is already there is complete (files are renamed into place when
they are finished), so in a folder it is not made again; a single named file is replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AudioError, InputError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff")
MEL_SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True)
class Job:
    """One answer to make. None is stdin and stdout."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        return "stdin" if self.source is None else str(self.source)


@dataclass
class Plan:
    """What a command line asks for. `many` is False for one input that goes to one named output."""

    many: bool
    jobs: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)


def make_plan(
    inputs: Sequence[str], output: str, suffixes: Sequence[str], made: str, overwrite: bool, what: str
) -> Plan:
    """The jobs of `inputs` (files, folders, "-"), whose answers end in `made`. `what` names the inputs in errors.

    Folders are searched for files that end in one of `suffixes`; files named one by one may end in anything.
    Raises `InputError` where the command line as a whole makes no sense; what concerns one of many files is listed
    in `failed` instead."""
    if "" in (*inputs, output):
        raise InputError("an empty name was given, as an unset variable leaves it; name a file or a folder")
    if len(inputs) == 1 and not Path(inputs[0]).is_dir():
        return Plan(False, [_single(inputs[0], output, made)])
    if output == "-":
        raise InputError("stdout takes one answer; give one input file, or a folder as --out")
    if "-" in inputs:
        raise InputError('"-" (stdin) stands alone; give it as the only input')
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; several inputs need a folder as --out")
    plan, taken = Plan(True), dict[Path, Path]()
    for source, target in _pairs(inputs, folder, suffixes, made, plan):
        _place(plan, Job(source, target), taken, overwrite)
    if not (plan.jobs or plan.skipped or plan.failed):
        raise InputError(f"{', '.join(inputs)}: no {what} ({', '.join(suffixes)}) in it")
    return plan


def _single(source: str, output: str, made: str) -> Job:
    stdin = source == "-"
    if stdin and sys.stdin is None:
        raise InputError('stdin is closed; name an input file instead of "-"')
    if output == "-":
        if sys.stdout is None:
            raise InputError('stdout is closed; name a file instead of "-"')
        if sys.stdout.isatty():
            raise InputError("stdout is a terminal; send it to a file or a program, or name a file as --out")
        return Job(None if stdin else Path(source), None)
    target = Path(output)
    # A folder called something.wav is more likely a slip than a wish.
    if output.endswith(("/", os.sep)) or (target.is_dir() and target.suffix != made):
        if stdin:
            raise InputError(f"{output}: is a folder, and stdin has no name to give to a file in it; name a file")
        target = target / (Path(source).stem + made)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file as --out")
    if not stdin and target.exists() and target.samefile(source if Path(source).exists() else os.devnull):
        raise InputError(f"{target}: is the input itself; name another --out")
    ending, alike = target.suffix.lower(), MEL_SUFFIXES if made in MEL_SUFFIXES else (made,)
    if ending in (*SOUND_SUFFIXES, *MEL_SUFFIXES, ".mp3", ".opus") and ending not in alike:
        raise InputError(f"{target}: would be a {made} file under another name; end --out in {made}")
    return Job(None if stdin else Path(source), target)


def _pairs(
    inputs: Sequence[str], folder: Path, suffixes: Sequence[str], made: str, plan: Plan
) -> Iterator[tuple[Path, Path]]:
    """(input, output) of every file asked for; the tree below an input folder is kept below `folder`."""
    for name in inputs:
        top = Path(name)
        if not top.is_dir():
            yield top, folder / (top.stem + made)
            continue

        def unreadable(error: OSError, top: Path = top) -> None:
            plan.failed.append((Job(Path(error.filename or top), None), (error.strerror or str(error)).lower()))

        for place, folders, files in os.walk(top, onerror=unreadable):
            here = Path(place)
            # What an earlier run left below the input is an answer, not a question.
            folders[:] = sorted(f for f in folders if not _same(here / f, folder))
            for file in sorted(files):
                if file.lower().endswith(tuple(suffixes)):
                    yield here / file, folder / here.relative_to(top) / (Path(file).stem + made)


def _place(plan: Plan, job: Job, taken: dict[Path, Path], overwrite: bool) -> None:
    assert job.source is not None and job.target is not None
    earlier = taken.setdefault(job.target, job.source)
    if earlier is not job.source:
        plan.failed.append((job, f"{job.target} is already the answer to {earlier}; give one of them another name"))
    elif _same(job.source, job.target):
        plan.failed.append((job, "its answer would replace it; give another folder as --out"))
    elif job.target.is_dir():
        plan.failed.append((job, f"{job.target} is a folder, so no file can be put there"))
    elif job.target.exists() and not overwrite:
        plan.skipped.append(job)
    else:
        plan.jobs.append(job)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def readable(job: Job, magics: dict[bytes, str], what: str) -> Any:
    """The job's input, as a path or a file object. `magics` are the first bytes of the kinds of `what` that are
    understood: stdin that begins otherwise is refused before the rest, which may have no end, is read."""
    if job.source is not None:
        return job.source
    head = sys.stdin.buffer.read(max(map(len, magics)))
    if not head.startswith(tuple(magics)):
        kinds = ", ".join(dict.fromkeys(magics.values()))
        said = f"begins with {head!r}" if head else "is empty"
        raise AudioError(f"stdin {said}, which is no {what}; {kinds} can be read")
    return _Stdin(head)


class _Stdin:
    """stdin with its first bytes, which have been looked at, in front again."""

    name = "stdin"

    def __init__(self, head: bytes) -> None:
        self._head = head

    def seekable(self) -> bool:
        return False

    def read(self, count: int = -1) -> bytes:
        head, self._head = self._head, b""
        return head or sys.stdin.buffer.read(count)
