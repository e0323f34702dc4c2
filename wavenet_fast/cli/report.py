"""What became of each file: gathered while a command works, then told to people on stderr or to programs as JSON."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from ..errors import InputError, WavenetFastError
from . import os_sentence
from .files import Job, Plan
from .places import check_place, write_json

SOME_FAILED = 3
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE, errno.EIO}
"""What will befall every other file too."""


@dataclass
class Report:
    """Files done, skipped, failed and interrupted. `facts` are said once for all (backend, seed …)."""

    plan: Plan
    facts: dict[str, Any] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    working: float = 0.0
    """Seconds spent in making sound, without loading, reading and writing."""
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for job in self.plan.skipped:
            self._add(job, "skipped")
        for job, why in self.plan.failed:
            self.fail(job, why)

    def done(self, job: Job, **facts: Any) -> None:
        self._add(job, "done", **facts)

    def interrupted(self, job: Job, **facts: Any) -> None:
        self._add(job, "interrupted", **facts)

    def fail(self, job: Job, why: str) -> None:
        """Note it, and say it at once: in a long run nobody waits for the end to learn of it."""
        self._add(job, "failed", error=why)
        say(why if why.startswith(job.name) else f"{job.name}: {why}")

    @contextmanager
    def surviving(self, job: Job) -> Iterator[None]:
        """What goes wrong inside with one of many files is noted, and the rest goes on. One file alone, and what will
        befall every other file too, is noted and raised."""
        try:
            yield
        except (WavenetFastError, OSError, MemoryError) as error:
            why = os_sentence(error) if isinstance(error, OSError) else str(error) or "not enough memory"
            system = error if isinstance(error, OSError) else error.__context__  # what became a sentence
            if not self.plan.many or getattr(system, "errno", None) in FATAL:
                self._add(job, "failed", error=why)
                raise
            self.fail(job, why)

    def _add(self, job: Job, status: str, **facts: Any) -> None:
        target = "stdout" if job.target is None else str(job.target)
        self.files.append({"input": job.name, "output": target, "status": status, **facts})

    def count(self, status: str) -> int:
        return sum(f["status"] == status for f in self.files)

    @property
    def exit_code(self) -> int:
        return SOME_FAILED if self.count("failed") else 0

    def to_dict(self) -> dict[str, Any]:
        """For programs. `seconds` is sound; `rtf` is processing time over it, of the files that are done."""
        seconds = sum(f.get("seconds", 0.0) for f in self.files)
        return {
            **self.facts,
            "done": self.count("done"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "interrupted": self.count("interrupted"),
            "seconds": round(seconds, 6),
            "processing_seconds": round(self.working, 6),
            "elapsed_seconds": round(time.perf_counter() - self.started, 6),
            "rtf": round(self.working / seconds, 6) if seconds and self.working else None,
            "files": self.files,
        }

    @contextmanager
    def told(self, path: str | None, as_json: bool, quiet: bool) -> Iterator[None]:
        """Tell what became of the work inside, also where it was stopped. `path` is looked at before that work."""
        if path is not None:
            self._check_path(Path(path))
        try:
            yield
        except BaseException:
            self._tell(path, as_json, quiet=quiet or not self.plan.many)
            raise
        self._tell(path, as_json, quiet)

    def _check_path(self, path: Path) -> None:
        """Raises `InputError` where the report would replace an input or an answer, or cannot be put."""
        jobs = [*self.plan.jobs, *self.plan.skipped, *(job for job, _ in self.plan.failed)]
        for named in (p for job in jobs for p in (job.source, job.target) if p is not None):
            if os.path.realpath(named) == os.path.realpath(path):
                raise InputError(f"--report {path}: is an input or an answer itself; name another file")
        check_place(f"--report {path}", path)

    def _tell(self, path: str | None, as_json: bool, quiet: bool) -> None:
        told = self.to_dict()
        if path is not None:
            write_json(path, told)
        if as_json:
            # Sound on stdout leaves stderr for the report.
            sound = any(f["output"] == "stdout" for f in self.files)
            click.echo(json.dumps(told), err=sound)
        elif not quiet:
            say(summary(told))


def summary(told: dict[str, Any]) -> str:
    """One line for people."""
    parts = [f"{told['done']} done"] + [f"{told[s]} {s}" for s in ("skipped", "failed", "interrupted") if told[s]]
    line = ", ".join(parts) + (" (already there; --overwrite makes them again)" if told["skipped"] else "")
    if told["seconds"]:
        line += f": {told['seconds']:.2f} s of sound"
    if told["rtf"]:
        line += f" in {told['processing_seconds']:.2f} s, real-time factor {told['rtf']:.3f}"
    used = [str(told[k]) for k in ("backend", "isa", "dtype") if told.get(k)]
    return f"{line} [{' '.join(used)}]" if used else line


def say(line: str) -> None:
    """A line on stderr that does not tear a progress bar."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(f"wavenet-fast: {line}", file=sys.stderr)
    else:
        click.echo(f"wavenet-fast: {line}", err=True)


class Progress:
    """A bar on stderr: seconds of sound for one file, files for many. Only on a terminal, and only after 2 s."""

    def __init__(self, plan: Plan, quiet: bool) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self.by_file, self.share = plan.many, 1.0
        count = "{n:.1f}/{total:.0f} files" if plan.many else "{n:.1f}/{total:.1f} s of sound"
        self.bar = tqdm(
            total=float(len(plan.jobs)) if plan.many else 0.0,
            disable=quiet or not sys.stderr.isatty(),
            delay=2,
            leave=False,
            file=sys.stderr,
            bar_format="{desc}{percentage:3.0f}% |{bar}| " + count + " [{elapsed}<{remaining}{postfix}]",
        )
        self.made = 0.0
        """Seconds of sound."""

    def begin(self, seconds: float) -> None:
        """The next file has this much sound."""
        if self.by_file:
            self.share = 1 / seconds if seconds else 0.0
        else:
            self.bar.total = seconds

    def advance(self, seconds: float, working: float = 0.0) -> None:
        """So much more sound is made; `working` are the seconds that all of it has taken, if they are known."""
        self.made += seconds
        if working and self.made:
            self.bar.set_postfix_str(f"RTF={working / self.made:.3f}", refresh=False)
        self.bar.update(seconds * self.share)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.bar.close()
